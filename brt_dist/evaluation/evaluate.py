"""Loss on a dataset: every document once, in order, with memory separate from training's."""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist

from brt_dist.data.one_pass import OnePassSchedule
from brt_dist.data.reader import Documents, SegmentReader
from brt_dist.evaluation.positions import PositionBins, PositionTally, by_position
from brt_dist.events import PositionLoss
from brt_dist.parallel.engine import Engine
from brt_dist.parallel.step_input import in_rows, step_input, streams_to_read


@dataclass(frozen=True)
class EvaluationResult:
    """Result of an evaluation.

    Attributes:
        loss: mean loss, in nats per token.
        tokens: tokens with a target that it was measured on.
        positions: the same by position in the document.
    """

    loss: float
    tokens: int
    positions: tuple[PositionLoss, ...] = ()

    @property
    def bits_per_token(self) -> float:
        return self.loss / math.log(2)


def evaluate(engine: Engine, dataset: Documents, max_steps: int, clear_memory: bool) -> EvaluationResult:
    """Evaluate the model on a dataset, from its beginning.  Collective.

    Args:
        engine: the model.
        dataset: to read.
        max_steps: most segments to read per stream.
        clear_memory: clear memory at the start of every segment instead of carrying it; the difference in loss is the
            benefit of memory.
    """
    config, layout = engine.config, engine.layout
    schedule = OnePassSchedule(
        dataset.lengths, streams=config.data.streams, segment=config.data.segment, window=config.model.window
    )
    reader = SegmentReader(dataset, schedule)
    cursor = schedule.start()
    bins = PositionBins(np.asarray(dataset.lengths), config.model.window)
    nats, tokens = 0.0, 0
    counts = np.zeros(len(bins.edges), np.int64)
    tally = torch.zeros(len(bins.edges), dtype=torch.float64, device=engine.device.torch)
    with engine.evaluation_memory() as memory:
        for number in range(1, max_steps + 1):
            if schedule.is_finished(cursor):
                break
            plan, cursor = schedule.step(cursor)
            segments = reader.read(plan, streams_to_read(layout))
            step = step_input(number, plan, segments, layout, engine.device, clear_memory)
            bin_of = bins.of(plan)
            np.add.at(counts, bin_of, bins.targets(plan))
            local = torch.from_numpy(in_rows(bin_of[list(layout.local_streams)], layout)).to(engine.device.torch)
            watched = PositionTally(local.split(layout.micro_batch), tally)
            nats += engine.evaluate_step(step, memory, watched) * plan.loss_tokens
            tokens += plan.loss_tokens
    dist.all_reduce(tally)  # only last stages have values, the same on all their tensor parallel ranks
    positions = by_position(bins.edges, (tally / layout.tensor).tolist(), counts.tolist())
    return EvaluationResult(nats / max(tokens, 1), tokens, positions)
