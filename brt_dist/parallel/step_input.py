"""Converts what the streams read in a step into the input of this rank's engine."""

from typing import Any, TypeVar

import numpy as np
import torch

from brt_dist.data.objectives.base import UNKNOWN, Objective
from brt_dist.data.objectives.causal import NextToken
from brt_dist.data.reader import Segments
from brt_dist.data.stream_schedule import StepReads
from brt_dist.parallel.device import Device
from brt_dist.parallel.layout import Layout
from brt_dist.parallel.micro_batches import StepInput

NEXT_TOKEN = NextToken(0, 0)  # which depends on neither
Array = TypeVar("Array", bound=np.ndarray[Any, Any])


def streams_to_read(layout: Layout) -> range:
    """Streams whose tokens this rank needs: none on middle stages, which only see hidden states."""
    return layout.local_streams if layout.is_first_stage or layout.is_last_stage else range(0)


def in_rows(array: Array, layout: Layout, idle: Any = 0) -> Array:
    """Values of this rank's streams (b, ...) as rows of its micro-batches; rows that hold no stream get `idle`."""
    more = len(layout.rows) - len(array)
    if not more:
        return array
    return np.concatenate([array, np.full_like(array[:1], idle).repeat(more, axis=0)])  # type: ignore[return-value]


def step_input(
    number: int,
    plan: StepReads,
    segments: Segments,
    layout: Layout,
    device: Device,
    clear_memory: bool = False,
    objective: Objective = NEXT_TOKEN,
) -> StepInput:
    """The engine's view of step `number` (from 1).

    Args:
        clear_memory: treat the first block of the segment as the beginning of a document, in every stream.
        objective: decides what must be predicted.
    """
    asked = objective.examples(number, plan, segments)
    starts = torch.from_numpy(in_rows(plan.starts[list(layout.local_streams)], layout, True))
    if clear_memory:
        starts = starts.clone()
        starts[:, 0] = True

    reads = layout.is_first_stage or layout.is_last_stage

    def tensor(array: object) -> torch.Tensor:
        return torch.as_tensor(array).to(device.torch, non_blocking=True)

    def read(array: Any, idle: Any = 0) -> torch.Tensor | None:
        return tensor(in_rows(array, layout, idle)) if reads else None

    return StepInput(
        number=number,
        starts=tensor(starts),
        tokens=read(asked.input),
        target=read(asked.target),
        mask=read(asked.mask),
        loss_tokens=objective.count(plan),
        source=None if asked.source is None else read(asked.source),
        labels=None if asked.labels is None else read(asked.labels, UNKNOWN),
        labelled=0 if asked.labels is None else int(plan.length.sum()),
    )
