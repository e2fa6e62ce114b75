"""Loss on a dataset: every document once, in order, with a memory of the evaluation's own."""

import math
from dataclasses import dataclass

from brt_dist.parallel.engine import Engine
from brt_dist.training.batches import step_input, streams_to_read
from pipelines.dataset import Dataset
from pipelines.mixture import Mixture
from pipelines.one_pass import OnePassSchedule
from pipelines.reader import SegmentReader


@dataclass(frozen=True)
class Evaluation:
    """Mean loss in nats per token, over `tokens` unmasked tokens."""

    loss: float
    tokens: int

    @property
    def bits_per_token(self) -> float:
        return self.loss / math.log(2)


def evaluate(engine: Engine, dataset: Dataset | Mixture, max_steps: int, clear_memory: bool) -> Evaluation:
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
    nats, tokens = 0.0, 0
    for number in range(max_steps):
        if schedule.is_finished(cursor):
            break
        plan, cursor = schedule.step(cursor)
        segments = reader.read(plan, streams_to_read(layout))
        step = step_input(number, plan, segments, layout, engine.device, clear_memory)
        nats += engine.evaluate_step(step, memory) * plan.loss_tokens
        tokens += plan.loss_tokens
    return Evaluation(nats / max(tokens, 1), tokens)
