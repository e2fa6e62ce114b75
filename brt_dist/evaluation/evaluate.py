"""Loss on a dataset: every document once, in order, with a memory of the evaluation's own."""

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
from brt_dist.parallel.step_input import step_input, streams_to_read


@dataclass(frozen=True)
class EvaluationResult:
    """Mean loss in nats per token, over `tokens` unmasked tokens, and the same by position in the document."""

    loss: float
    tokens: int
    positions: tuple[PositionLoss, ...] = ()

    @property
    def bits_per_token(self) -> float:
        return self.loss / math.log(2)


def evaluate(engine: Engine, dataset: Documents, max_steps: int, clear_memory: bool) -> EvaluationResult:
    """Read `dataset` from the beginning, at most `max_steps` segments per stream.  Collective.

    Args:
        clear_memory: forget state and cache at the start of every segment instead of carrying them; what the
            difference is, memory is worth.
    """
    config, layout = engine.config, engine.layout
    schedule = OnePassSchedule(
        dataset.lengths, streams=config.data.streams, segment=config.data.segment, window=config.model.window
    )
    reader = SegmentReader(dataset, schedule)
    memory = engine.new_memory()
    cursor = schedule.start()
    bins = PositionBins(np.asarray(dataset.lengths), config.model.window)
    nats, tokens = 0.0, 0
    counts = np.zeros(len(bins.edges), np.int64)
    tally = torch.zeros(len(bins.edges), dtype=torch.float64, device=engine.device.torch)
    for number in range(1, max_steps + 1):
        if schedule.is_finished(cursor):
            break
        plan, cursor = schedule.step(cursor)
        segments = reader.read(plan, streams_to_read(layout))
        step = step_input(number, plan, segments, layout, engine.device, clear_memory)
        bin_of = bins.of(plan)
        np.add.at(counts, bin_of, bins.targets(plan))
        local = torch.from_numpy(bin_of[list(layout.local_streams)]).to(engine.device.torch)
        watched = PositionTally(local.split(layout.micro_batch), tally)
        nats += engine.evaluate_step(step, memory, watched) * plan.loss_tokens
        tokens += plan.loss_tokens
    dist.all_reduce(tally)  # the last stages have all of it, each on all of its tensor parallel ranks
    positions = by_position(bins.edges, (tally / layout.tensor).tolist(), counts.tolist())
    return EvaluationResult(nats / max(tokens, 1), tokens, positions)
