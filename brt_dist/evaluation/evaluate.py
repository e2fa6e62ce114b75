"""Loss on a dataset: every document once, in order, with memory separate from training's."""

import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Protocol

from brt_dist.data.objectives.base import EVALUATION, Objective, objective_of
from brt_dist.data.objectives.oracle import Oracle
from brt_dist.data.one_pass import OnePassSchedule
from brt_dist.data.reader import Documents, SegmentReader
from brt_dist.data.stream_schedule import StepReads
from brt_dist.evaluation.answers import Answers
from brt_dist.evaluation.forgetting import MemoryUse, part_of
from brt_dist.evaluation.layer_tally import LayerTally, watched_by
from brt_dist.evaluation.legality import Legality
from brt_dist.evaluation.oracle_tally import OracleScores
from brt_dist.evaluation.positions import Positions
from brt_dist.evaluation.stream_forgetting import clear_streams
from brt_dist.events import LayerStatistics, PositionLoss
from brt_dist.parallel.engine import Engine, Observer
from brt_dist.parallel.micro_batches import StepInput
from brt_dist.parallel.pipeline import layers_of
from brt_dist.parallel.step_input import step_input, streams_to_read


@dataclass(frozen=True)
class EvaluationResult:
    """Result of an evaluation.

    Attributes:
        loss: mean loss, in nats per token.
        tokens: tokens with a target that it was measured on.
        positions: the same by position in the document.
        carried_tokens: those of them whose document began in an earlier segment, so that memory was carried to them.
        layers: statistics of the layers that report some, if asked for.
        accuracy: share of the targets whose likeliest token is right; only for models that do not continue text, which
            have no positions or carried tokens.
        oracle: result for models of a formal language, which have no positions or carried tokens either.
    """

    loss: float
    tokens: int
    positions: tuple[PositionLoss, ...] = ()
    carried_tokens: int = 0
    layers: tuple[LayerStatistics, ...] = ()
    accuracy: float | None = None
    oracle: OracleScores | None = None

    @property
    def bits_per_token(self) -> float:
        return self.loss / math.log(2)


class Tally(Protocol):
    """What an evaluation counts besides the loss; the objective decides which one."""

    def observer(self, plan: StepReads, step: StepInput) -> Observer:
        """Sees the scores of a step."""
        ...

    def results(self, tokens: int) -> dict[str, Any]:
        """Fields of the `EvaluationResult` of `tokens` tokens with a target.  Collective."""
        ...


def evaluate(
    engine: Engine,
    dataset: Documents,
    max_steps: int,
    memory_use: MemoryUse = "carried",
    watch: bool = False,
    between: Callable[[int], None] = lambda number: None,
) -> EvaluationResult:
    """Evaluate the model on a dataset, from its beginning, with the same random draws each time.  Collective.

    Args:
        engine: the model.
        dataset: to read.
        max_steps: largest number of segments to read per stream.
        memory_use: carry memory, or clear all or a part of it at the start of every segment; the difference in loss is
            what it is worth.
        watch: also collect what layers report about their forward passes (`Mixer.watched`).
        between: called on all ranks before each segment with its number, from 1; what it raises ends the evaluation.
    """
    config, layout = engine.config, engine.layout
    schedule = OnePassSchedule(
        dataset.lengths, streams=config.data.streams, segment=config.data.segment, window=config.model.window
    )
    objective, nats, tokens = objective_of(config.model, EVALUATION), 0.0, 0
    reader = SegmentReader(dataset, schedule, objective.reads_beginnings)
    cursor, part = schedule.start(), part_of(memory_use)
    tally_of_layers = LayerTally(watched_by(config.model) if watch else {}, engine.device.torch)
    with ExitStack() as stack:
        memory = stack.enter_context(engine.evaluation_memory())
        tally = _tally_of(objective, engine, dataset, stack)
        if watch:
            layers = layers_of(engine.stage)
            stack.enter_context(tally_of_layers.watching(layers, lambda: engine.holds_streams))
        for number in range(1, max_steps + 1):
            if schedule.is_finished(cursor):
                break
            between(number)
            plan, cursor = schedule.step(cursor)
            segments = reader.read(plan, streams_to_read(layout))
            step = step_input(number, plan, segments, layout, engine.device, memory_use == "cleared", objective)
            if part is not None:
                clear_streams(engine, memory, part)
            nats += engine.evaluate_step(step, memory, tally.observer(plan, step)) * step.loss_tokens
            tokens += step.loss_tokens
    seen = tally_of_layers.result() if watch else ()
    return EvaluationResult(nats / max(tokens, 1), tokens, layers=seen, **tally.results(tokens))


def _tally_of(objective: Objective, engine: Engine, dataset: Documents, until: ExitStack) -> Tally:
    if isinstance(objective, Oracle):
        return Legality(objective, engine, dataset, until)
    return Positions(engine, dataset.lengths) if objective.continues_text else Answers(engine)
