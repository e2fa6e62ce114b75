"""Converts what the streams read in a step into the input of this rank's engine."""

import torch

from brt_dist.data.reader import Segments
from brt_dist.data.stream_schedule import StepReads
from brt_dist.parallel.device import Device
from brt_dist.parallel.engine import StepInput
from brt_dist.parallel.layout import Layout


def streams_to_read(layout: Layout) -> range:
    """Streams whose tokens this rank needs: none on middle stages, which only see hidden states."""
    return layout.local_streams if layout.is_first_stage or layout.is_last_stage else range(0)


def step_input(
    number: int, plan: StepReads, segments: Segments, layout: Layout, device: Device, clear_memory: bool = False
) -> StepInput:
    """The engine's view of step `number` (from 1).

    Args:
        clear_memory: treat the first block of the segment as the beginning of a document, in every stream.
    """
    starts = torch.from_numpy(plan.starts[list(layout.local_streams)])
    if clear_memory:
        starts = starts.clone()
        starts[:, 0] = True

    def tensor(array: object) -> torch.Tensor:
        return torch.as_tensor(array).to(device.torch, non_blocking=True)

    reads = layout.is_first_stage or layout.is_last_stage
    return StepInput(
        number=number,
        starts=tensor(starts),
        tokens=tensor(segments.input) if reads else None,
        target=tensor(segments.target) if reads else None,
        mask=tensor(segments.mask) if reads else None,
        loss_tokens=plan.loss_tokens,
    )
