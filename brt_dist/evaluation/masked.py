"""How many masked tokens an encoder finds again."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

from brt_dist.data.masking import EVALUATION
from brt_dist.data.one_pass import OnePassSchedule
from brt_dist.data.reader import Documents, SegmentReader
from brt_dist.evaluation.forgetting import MemoryUse, part_of
from brt_dist.evaluation.stream_forgetting import clear_streams
from brt_dist.model.linear import gather
from brt_dist.parallel.engine import Engine
from brt_dist.parallel.step_input import masking_of, step_input, streams_to_read


@dataclass
class Found:
    """Observer of an evaluation step (see `Engine`) that counts the masked tokens whose likeliest token is right.

    Attributes:
        vocabulary: V.
        right: float64 scalar, the count of this rank's streams; updated in place.
    """

    vocabulary: int
    right: Tensor

    wants_logits: ClassVar[bool] = True

    def __call__(self, micro_batch: int, scores: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        logits = gather(scores.transpose(0, 1)[mask])[:, : self.vocabulary].float()  # of the masked tokens alone
        self.right += (logits.argmax(-1) == target[mask]).sum()
        return functional.cross_entropy(logits, target[mask], reduction="sum")


def evaluate_masked(
    engine: Engine, dataset: Documents, max_steps: int, memory_use: MemoryUse, between: Callable[[int], None]
) -> tuple[float, int, float]:
    """Evaluate an encoder on a dataset, from its beginning; the same tokens are masked each time.  Collective.

    Args: as for `evaluate`.

    Returns:
        Mean nats of a masked token, the number of them, and the share that is found.
    """
    config, layout = engine.config, engine.layout
    schedule = OnePassSchedule(
        dataset.lengths, streams=config.data.streams, segment=config.data.segment, window=config.model.window
    )
    masking = masking_of(config, EVALUATION)
    reader, cursor, part = SegmentReader(dataset, schedule), schedule.start(), part_of(memory_use)
    right = torch.zeros((), dtype=torch.float64, device=engine.device.torch)
    watched, nats, tokens = Found(config.model.vocab_size or 0, right), 0.0, 0
    with engine.evaluation_memory() as memory:
        for number in range(1, max_steps + 1):
            if schedule.is_finished(cursor):
                break
            between(number)
            plan, cursor = schedule.step(cursor)
            segments = reader.read(plan, streams_to_read(layout))
            clears = memory_use == "cleared"
            step = step_input(number, plan, segments, layout, engine.device, clears, masking)
            if part is not None:
                clear_streams(engine, memory, part)
            nats += engine.evaluate_step(step, memory, watched) * step.loss_tokens
            tokens += step.loss_tokens
    dist.all_reduce(right)  # only last stages have values, the same on all their tensor parallel ranks
    return nats / max(tokens, 1), tokens, float(right) / layout.tensor / max(tokens, 1)
