"""Reads whole documents through a model that is spread over ranks as in training; see `score`."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, ClassVar

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor

from brt_dist.data.objectives.oracle import Oracle
from brt_dist.data.reader import Documents, SegmentReader
from brt_dist.data.stream_schedule import StepReads
from brt_dist.evaluation.forgetting import MemoryPass, part_of
from brt_dist.evaluation.layer_tally import LayerTally, statistics_by_layer
from brt_dist.evaluation.legality import Legality
from brt_dist.evaluation.score import Float64Array, Score, add_up, block_nats, one_pass
from brt_dist.evaluation.stream_forgetting import clear_streams
from brt_dist.model.model import token_losses
from brt_dist.parallel.engine import Engine
from brt_dist.parallel.pipeline import layers_of, runs_of
from brt_dist.parallel.step_input import NEXT_TOKEN, step_input, streams_to_read
from brt_dist.parallel.stream_memory import StreamMemory


class EngineReading:
    """Reads documents on all ranks; every rank gets the nats of all streams.

    Args:
        engine: the model.
        reader: of the documents.
        memory: blank.
        how: what happens to it at the start of every segment.
        tally: statistics of the memory after each segment; None: none.
        legality: counts what is legal; None: do not.
    """

    def __init__(
        self,
        engine: Engine,
        reader: SegmentReader,
        memory: StreamMemory,
        how: MemoryPass,
        tally: LayerTally | None,
        legality: Legality | None = None,
    ) -> None:
        self._engine, self._reader, self._memory, self._how, self._tally = engine, reader, memory, how, tally
        self._legality, self._objective = legality, NEXT_TOKEN if legality is None else legality.objective
        self._steps = 0

    def read(self, plan: StepReads) -> Float64Array:
        """Nats of each block of a step, (B, N/W).  Collective."""
        engine, layout, device = self._engine, self._engine.layout, self._engine.device
        self._steps += 1
        segments = self._reader.read(plan, streams_to_read(layout))
        part = part_of(self._how.use)
        if part is not None:
            clear_streams(engine, self._memory, part, self._how.layers)
        step = step_input(self._steps, plan, segments, layout, device, self._how.use == "cleared", self._objective)
        watched = _BlockNats(plan.document.shape[1])
        if self._legality is not None:
            watched = _BlockNatsOfLogits(plan.document.shape[1], self._legality.observer(plan, step))
        engine.evaluate_step(step, self._memory, watched)
        if self._tally is not None:
            look_at_memory(engine, self._memory, self._tally)
        nats = torch.zeros(plan.document.shape, dtype=torch.float64, device=device.torch)
        if watched.found:  # on last stages, the same on their tensor parallel ranks
            mine = list(layout.local_streams)
            nats[mine] = torch.cat(watched.found)[: len(mine)]
        dist.all_reduce(nats)
        found: Float64Array = (nats / layout.tensor).cpu().numpy()
        return found


def score_on_ranks(
    engine: Engine,
    documents: Documents,
    how: MemoryPass,
    watch: bool = False,
    oracle: Oracle | None = None,
    on_tokens: Callable[[int], None] = lambda tokens: None,
) -> Score:
    """Read all documents once, in the segments and streams of the engine's config.  Collective.

    Args:
        engine: the model.
        documents: to read.
        how: what happens to memory at the start of every segment.
        watch: also watch layers with a state.
        oracle: the model's, to also count legal predictions; all documents are words of its language.
        on_tokens: called after each step with the number of tokens predicted in it.

    Returns:
        The result of `score` in one process, on all ranks.

    Raises:
        DataError: no document has two tokens, so nothing can be predicted.
    """
    config = engine.config
    schedule = one_pass(documents, config.data.segment, config.data.streams, config.model.window)
    tally = LayerTally(statistics_by_layer(config.model), engine.device.torch)
    with ExitStack() as stack:
        memory = stack.enter_context(engine.evaluation_memory())
        legality = None if oracle is None else Legality(oracle, engine, documents, stack)
        look = None
        if watch:
            stack.enter_context(tally.watching(layers_of(engine.stage), lambda: engine.holds_streams))
            look = tally
        reader = SegmentReader(documents, schedule, beginnings=oracle is not None)
        reading = EngineReading(engine, reader, memory, how, look, legality)
        found = add_up(documents, schedule, reading, on_tokens)
    return replace(
        found,
        layers=tally.result() if watch else (),
        oracle=None if legality is None else legality.tally.result(),
    )


def look_at_memory(engine: Engine, memory: StreamMemory, tally: LayerTally) -> None:
    """Add the statistics of the memory of this rank's streams, for layers whose mixer declares some.

    Collective under ZeRO-3 and sequence parallel.
    """
    for index, layer in runs_of(engine.stage):
        if not engine.config.model.mixer_of(index).statistics:
            continue
        memories = [memory.read(index, number) for number in range(engine.layout.filled_micro_batches)]
        module: Any = layer.mixer
        with deepspeed.zero.GatheredParameters(module.statistics_parameters()):
            for name, values in module.statistics(memories):
                tally.add(index, name, values)


class _BlockNats:
    """Observer of an evaluation step (see `Engine`) that keeps the nats of each block."""

    wants_logits: ClassVar[bool] = False

    def __init__(self, blocks: int) -> None:
        self._blocks = blocks
        self.found: list[Tensor] = []  # for each micro-batch (b, N/W)

    def __call__(self, micro_batch: int, scores: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        blocks = block_nats(scores, mask, self._blocks)
        self.found.append(blocks)
        return blocks.sum().float()


class _BlockNatsOfLogits(_BlockNats):
    """The same for a pass whose legality needs the logits."""

    wants_logits: ClassVar[bool] = True

    def __init__(self, blocks: int, legality: Legality) -> None:
        super().__init__(blocks)
        self._legality = legality

    def __call__(self, micro_batch: int, scores: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        self._legality(micro_batch, scores, target, mask)
        return super().__call__(micro_batch, token_losses(scores, target), target, mask)
