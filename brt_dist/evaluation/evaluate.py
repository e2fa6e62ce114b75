"""Loss on a dataset: every document once, in order, with memory separate from training's."""

import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist

from brt_dist.data.one_pass import OnePassSchedule
from brt_dist.data.reader import Documents, SegmentReader
from brt_dist.evaluation.forgetting import MemoryUse, part_of
from brt_dist.evaluation.layer_tally import LayerTally, watched_by
from brt_dist.evaluation.masked import evaluate_masked
from brt_dist.evaluation.positions import PositionBins, PositionTally, by_position
from brt_dist.evaluation.stream_forgetting import clear_streams
from brt_dist.events import LayerStatistics, PositionLoss
from brt_dist.parallel.engine import Engine
from brt_dist.parallel.pipeline import layers_of
from brt_dist.parallel.step_input import in_rows, step_input, streams_to_read


@dataclass(frozen=True)
class EvaluationResult:
    """Result of an evaluation.

    Attributes:
        loss: mean loss, in nats per token.
        tokens: tokens with a target that it was measured on; of an encoder, those that were masked.
        positions: the same by position in the document.
        carried_tokens: those of them whose document began in an earlier segment, so that memory was carried to them.
        layers: what was seen of the layers that tell something, if asked for.
        accuracy: share of masked tokens that were found; of encoders only, which have no positions and carried tokens.
    """

    loss: float
    tokens: int
    positions: tuple[PositionLoss, ...] = ()
    carried_tokens: int = 0
    layers: tuple[LayerStatistics, ...] = ()
    accuracy: float | None = None

    @property
    def bits_per_token(self) -> float:
        return self.loss / math.log(2)


def evaluate(
    engine: Engine,
    dataset: Documents,
    max_steps: int,
    memory_use: MemoryUse = "carried",
    watch: bool = False,
    between: Callable[[int], None] = lambda number: None,
) -> EvaluationResult:
    """Evaluate the model on a dataset, from its beginning.  Collective.

    Args:
        engine: the model.
        dataset: to read.
        max_steps: most segments to read per stream.
        memory_use: carry memory, or clear all or a part of it at the start of every segment; the difference in loss is
            what it is worth.
        watch: also see what layers tell of their forwards (`Mixer.watched`).
        between: called on all ranks before each segment with its number, from 1; what it raises ends the evaluation.
    """
    config, layout = engine.config, engine.layout
    if config.model.objective == "mlm":
        loss, count, accuracy = evaluate_masked(engine, dataset, max_steps, memory_use, between)
        return EvaluationResult(loss, count, accuracy=accuracy)
    schedule = OnePassSchedule(
        dataset.lengths, streams=config.data.streams, segment=config.data.segment, window=config.model.window
    )
    reader = SegmentReader(dataset, schedule)
    cursor = schedule.start()
    bins = PositionBins(np.asarray(dataset.lengths), config.model.window)
    nats, tokens, carried_tokens, part = 0.0, 0, 0, part_of(memory_use)
    tally_of_layers = LayerTally(watched_by(config.model) if watch else {}, engine.device.torch)
    counts = np.zeros(len(bins.edges), np.int64)
    tally = torch.zeros(len(bins.edges), dtype=torch.float64, device=engine.device.torch)
    with ExitStack() as stack:
        memory = stack.enter_context(engine.evaluation_memory())
        if watch:
            layers = layers_of(engine.stage)
            stack.enter_context(tally_of_layers.watching(layers, lambda: engine.holds_streams))
        for number in range(1, max_steps + 1):
            if schedule.is_finished(cursor):
                break
            between(number)
            plan, cursor = schedule.step(cursor)
            segments = reader.read(plan, streams_to_read(layout))
            step = step_input(number, plan, segments, layout, engine.device, memory_use == "cleared")
            if part is not None:
                clear_streams(engine, memory, part)
            bin_of = bins.of(plan)
            targets = bins.targets(plan)
            np.add.at(counts, bin_of, targets)
            # of a document that began before the segment did
            carried_tokens += int(targets[plan.offset > config.model.window * np.arange(plan.offset.shape[1])].sum())
            local = torch.from_numpy(in_rows(bin_of[list(layout.local_streams)], layout)).to(engine.device.torch)
            watched = PositionTally(local.split(layout.micro_batch), tally)
            nats += engine.evaluate_step(step, memory, watched) * plan.loss_tokens
            tokens += plan.loss_tokens
    dist.all_reduce(tally)  # only last stages have values, the same on all their tensor parallel ranks
    positions = by_position(bins.edges, (tally / layout.tensor).tolist(), counts.tolist())
    return EvaluationResult(
        nats / max(tokens, 1), tokens, positions, carried_tokens, tally_of_layers.result() if watch else ()
    )
