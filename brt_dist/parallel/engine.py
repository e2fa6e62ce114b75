"""One training step on one rank, in any layout: combines the model, DeepSpeed and the stream memory.

The loss of a step is the same in every layout: the sum of nats over all tokens with a target in the global batch,
divided by their number, which every rank knows from the stream schedule in advance.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor

from brt_dist.config.deepspeed import deepspeed_config
from brt_dist.config.schema import Config
from brt_dist.config.stages import stage_layers
from brt_dist.model.dropout import MASK_VERSION, Dropout, MaskVersion
from brt_dist.model.linear import megatron_config
from brt_dist.model.memory import Memory
from brt_dist.model.model import loss_sum
from brt_dist.model.parameters import initialize, logical_parameters
from brt_dist.optim.groups import set_learning_rate
from brt_dist.parallel.deepspeed_internals import clip_gradients, quiet, release_graph
from brt_dist.parallel.device import Device
from brt_dist.parallel.finite import FiniteGradients
from brt_dist.parallel.layout import Layout, MegatronGroups, sharding
from brt_dist.parallel.memory_place import OnDevice, OnHost
from brt_dist.parallel.pieces import Piece, Read
from brt_dist.parallel.pipeline import PipelineStage, WholeModel, layers_of
from brt_dist.parallel.stage import MicroBatch, StageContext
from brt_dist.parallel.state import RankState
from brt_dist.parallel.stream_memory import ForwardMemory, StreamMemory


@dataclass(frozen=True)
class StepInput:
    """What one step reads, for the b streams of this rank (all micro-batches), on its device.

    Attributes:
        number: of the step, from 1; dropout masks depend on it.  Ignored in an evaluation.
        starts: (b, N/W) bool, blocks that start a document.
        tokens: (b, N) int64; None on stages that read no data.
        target: (b, N) int64, the next tokens; None on stages that read no data.
        mask: (b, N) bool, positions with a target; None on stages that read no data.
        loss_tokens: tokens with a target in the whole global batch.
    """

    number: int
    starts: Tensor
    tokens: Tensor | None
    target: Tensor | None
    mask: Tensor | None
    loss_tokens: int


# Looks at an evaluation step on the last stage: number of the micro-batch, this rank's logits (N, b, V/tp), target and
# mask (b, N); returns the sum of nats.  Called in the order of the micro-batches.
Observer: TypeAlias = Callable[[int, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class StepResult:
    """Result of a step.  If the gradient norm is not finite, the update was skipped and the memory is unchanged.

    Attributes:
        loss: mean loss of the global batch, in nats per token with a target.
        grad_norm: norm of its gradient before clipping.
    """

    loss: float
    grad_norm: float

    @property
    def is_updated(self) -> bool:
        return math.isfinite(self.grad_norm)

    @property
    def is_finite(self) -> bool:
        return self.is_updated and math.isfinite(self.loss)


class Engine(ABC):
    """Model, optimizer and stream memory of one rank.  :func:`build_engine` makes one.

    Args:
        groups: given to DeepSpeed; None where it makes its own.
    """

    stage: WholeModel | PipelineStage

    def __init__(
        self,
        config: Config,
        layout: Layout,
        device: Device,
        context: StageContext,
        stage: WholeModel | PipelineStage,
        groups: MegatronGroups | None,
    ) -> None:
        self.config = config
        self.layout = layout
        self.device = device
        self.stage = stage
        self.mask_version: MaskVersion = MASK_VERSION
        self._context = context
        self._observer: Observer | None = None  # of the evaluation step under way
        self._observed = 0  # micro-batches of it
        for name, module in stage.logical_modules():
            initialize(module, config.run.seed, name)
        self.parameters = [p for name, module in stage.logical_modules() for p in logical_parameters(module, name)]
        self.optimizer = config.optimizer.build(self.parameters, sharding(config, layout))
        self._deepspeed = _initialize(stage, self.optimizer, config, groups)
        self._finite = FiniteGradients([p.local for p in self.parameters], self._deepspeed, device)
        self._state = RankState(config, layout, self.parameters, self.optimizer, self._deepspeed)
        # DeepSpeed has cast the module: memory takes its types from it
        on_host = config.parallel.stream_memory == "host"
        self._place = OnHost(device.transfers()) if on_host else OnDevice()
        self.memory = StreamMemory(self._blank_memory(), layout.micro_batches, self._place)

    @contextmanager
    def evaluation_memory(self) -> Iterator[StreamMemory]:
        """Blank memory for all streams of this rank, for evaluation steps until the next training step."""
        with closing(ForwardMemory(self._blank_memory(), self.layout.micro_batches, self._place)) as memory:
            yield memory

    def _blank_memory(self) -> dict[int, Memory]:
        return {layer.index: layer.blank_memory(self.layout.micro_batch) for layer in layers_of(self.stage)}

    def train_step(self, step: StepInput, learning_rate: float) -> StepResult:
        """Forward and backward of all micro-batches, one update, and the commit of the memory.  Collective."""
        set_learning_rate(self.optimizer, learning_rate)
        self._observer = None
        self._context.begin(self._micro_batches(step, training=True), self.memory)
        result = self._train(step)
        if self._finite.left_out:
            result = replace(result, grad_norm=math.inf)
        if result.is_finite:
            self.memory.commit()
        else:
            self.memory.discard()
        return result

    def evaluate_step(self, step: StepInput, memory: StreamMemory, observer: Observer | None = None) -> float:
        """Loss of a segment in nats per token with a target, without a gradient; advances `memory`.  Collective."""
        if step.loss_tokens == 0:
            return 0.0
        self._observer, self._observed = observer, 0
        self._context.begin(self._micro_batches(step, training=False), memory)
        loss = self._evaluate(step)
        memory.commit()
        return loss

    @property
    def updates(self) -> int:
        """Optimizer updates so far."""
        return self._state.updates

    def pieces(self) -> list[Piece]:
        """Everything on this rank that training changes, as views."""
        return self._state.pieces(self.memory)

    def load(self, read: Read, updates: int) -> None:
        """Load a state that any layout saved.  Collective.

        Args:
            read: reads a region of a logical tensor.
            updates: optimizer updates so far.

        Raises:
            CheckpointError: raised by `read`; a tensor is missing or has a different shape.
        """
        self._state.load(self.memory, read, updates)

    def weights(self) -> dict[str, Tensor]:
        """Copies of this rank's slices of the weights, by logical name.  Collective under ZeRO-3."""
        with deepspeed.zero.GatheredParameters([p.local for p in self.parameters]):
            return {p.name: p.local.detach().clone() for p in self.parameters}

    def close(self) -> None:
        """Remove all hooks from the weights; otherwise the engine and its process groups are never freed."""
        self._finite.close()
        self._deepspeed.destroy()

    def _micro_batches(self, step: StepInput, training: bool) -> list[MicroBatch]:
        rate = self.config.model.dropout
        size = self.layout.micro_batch
        streams, seed = self.layout.local_streams, self.config.run.seed
        is_split = self.config.parallel.sequence_parallel and self.layout.tensor > 1

        def dropout(i: int) -> Dropout | None:
            if not training:
                return None  # at rate 0 it drops nothing, but tells layers that they train, and keys what they draw
            # the keys of the masks count steps from 0
            mine = streams[i * size : (i + 1) * size]
            return Dropout(rate, seed, step.number - 1, mine, is_split, mask_version=self.mask_version)

        return [MicroBatch(starts, dropout(i)) for i, starts in enumerate(step.starts.split(size))]

    def _portions(self, step: StepInput) -> Iterator[tuple[Tensor | None, tuple[Tensor, Tensor, Tensor] | None]]:
        """Per micro-batch: tokens, and (target, mask, weight of a nat in the mean loss)."""
        # DeepSpeed averages over micro-batches and data parallel ranks; the weight undoes that.
        share = self.layout.micro_batches * self.layout.data / max(step.loss_tokens, 1)
        weight = torch.tensor(share, device=self.device.torch)
        for i in range(self.layout.micro_batches):
            rows = slice(i * self.layout.micro_batch, (i + 1) * self.layout.micro_batch)
            labels = None
            if step.target is not None and step.mask is not None:
                labels = (step.target[rows], step.mask[rows], weight)
            yield None if step.tokens is None else step.tokens[rows], labels

    def _loss(self, logits: Tensor, labels: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        target, mask, weight = labels
        if self._observer is None:
            return loss_sum(logits, target, mask) * weight
        self._observed += 1
        return self._observer(self._observed - 1, logits, target, mask) * weight

    @abstractmethod
    def _train(self, step: StepInput) -> StepResult: ...

    @abstractmethod
    def _evaluate(self, step: StepInput) -> float: ...


class WholeEngine(Engine):
    """Without a pipeline: tensor and data parallel, any ZeRO stage that the rules allow."""

    def __init__(self, config: Config, layout: Layout, device: Device) -> None:
        context, parallel = StageContext(StreamMemory({}, 0)), megatron_config(config.parallel.sequence_parallel)
        with device.torch:
            stage = WholeModel(config.model, context, parallel, config.parallel.recompute)
        super().__init__(config, layout, device, context, stage, MegatronGroups())

    def _train(self, step: StepInput) -> StepResult:
        self.stage.train()
        total = torch.zeros((), device=self.device.torch)
        for tokens, labels in self._portions(step):
            loss = self._loss(self._deepspeed(tokens), labels)  # type: ignore[arg-type]
            self._deepspeed.backward(loss)
            norm = self._clip_without_zero()
            self._deepspeed.step()
            total += loss.detach()
        if norm is None:
            norm = self._deepspeed.get_global_grad_norm()
        return StepResult(self._mean(total), float(norm))

    def _evaluate(self, step: StepInput) -> float:
        self.stage.eval()
        total = torch.zeros((), device=self.device.torch)
        with torch.no_grad():
            for tokens, labels in self._portions(step):
                total += self._loss(self.stage(tokens), labels)  # type: ignore[arg-type]
        return self._mean(total)

    def _mean(self, total: Tensor) -> float:
        dist.all_reduce(total, group=MegatronGroups.get_data_parallel_group())
        return float(total) / (self.layout.micro_batches * self.layout.data)

    def _clip_without_zero(self) -> float | None:
        """Clip whole gradients and return their norm; with ZeRO that is done in DeepSpeed's step, and this is None.

        DeepSpeed would clip here too, but keeps the norm to itself.
        """
        if self.config.parallel.zero_stage > 0 or not self._deepspeed.is_gradient_accumulation_boundary():
            return None
        limit = self.config.optimizer.clip_norm or math.inf
        return clip_gradients([p.local for p in self.parameters], limit, MegatronGroups())


class PipelinedEngine(Engine):
    """With pipeline stages: DeepSpeed's 1F1B schedule, ZeRO-1."""

    def __init__(self, config: Config, layout: Layout, device: Device) -> None:
        context, parallel = StageContext(StreamMemory({}, 0)), megatron_config(config.parallel.sequence_parallel)
        layers, recompute = stage_layers(config), config.parallel.recompute
        stage = PipelineStage(config.model, layout, layers, context, parallel, recompute, self._loss)
        super().__init__(config, layout, device, context, stage, None)

    def _train(self, step: StepInput) -> StepResult:
        loss = self._deepspeed.train_batch(self._portions(step))
        return StepResult(float(loss), float(self._deepspeed.get_global_grad_norm()))

    def _evaluate(self, step: StepInput) -> float:
        return float(self._deepspeed.eval_batch(self._portions(step)))

    def close(self) -> None:
        super().close()
        release_graph(self._deepspeed)


def build_engine(config: Config, layout: Layout, device: Device) -> Engine:
    """The engine for this rank.  `config.model.vocab_size` must be set.  Collective."""
    quiet()
    return (PipelinedEngine if layout.pipeline > 1 else WholeEngine)(config, layout, device)


def _initialize(stage: Any, optimizer: torch.optim.Optimizer, config: Config, groups: MegatronGroups | None) -> Any:
    engine, *_ = deepspeed.initialize(
        model=stage, optimizer=optimizer, config=deepspeed_config(config), mpu=groups, dist_init_required=False
    )
    return engine
