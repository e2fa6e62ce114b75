"""One training step on one rank, in any layout: combines the model, DeepSpeed and the stream memory.

The loss of a step is the same in every layout: the sum of nats over all tokens with a target in the global batch,
divided by their number, which every rank knows from the stream schedule in advance.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any, ClassVar, Protocol, TypeAlias

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor

from brt_dist.config.deepspeed import deepspeed_config
from brt_dist.config.schema import Config
from brt_dist.config.stages import stage_layers
from brt_dist.config.zero import SCATTERED_BUCKET
from brt_dist.config.zero_rules import scatters_sums
from brt_dist.model.dropout import MASK_VERSION, MaskVersion
from brt_dist.model.linear import megatron_config
from brt_dist.model.memory import Memory
from brt_dist.model.parameters import logical_parameters
from brt_dist.optim.groups import set_learning_rate, split_groups
from brt_dist.parallel.control import Control, StepResult
from brt_dist.parallel.deepspeed_internals import (
    UPDATE,
    before_update,
    loss_of_batch,
    quiet,
    release_graph,
    restore_linear,
    silence_timers,
    skip_loss,
    takes_apart,
)
from brt_dist.parallel.device import Device
from brt_dist.parallel.layout import Layout, MegatronGroups, sharding
from brt_dist.parallel.memory_place import OnDevice, OnHost
from brt_dist.parallel.micro_batches import StepInput, micro_batches, portions
from brt_dist.parallel.pieces import Piece, Read
from brt_dist.parallel.pipeline import PipelineStage, WholeModel, runs_of
from brt_dist.parallel.stage import MicroBatch, StageContext
from brt_dist.parallel.state import HeldWeight, RankState
from brt_dist.parallel.stream_memory import ForwardMemory, StreamMemory
from brt_dist.parallel.update_internals import update_of
from brt_dist.parallel.waiting import StepTimer, time_step


class Observer(Protocol):
    """Observes an evaluation step on the last stage, in the order of the micro-batches."""

    wants_logits: ClassVar[bool]
    """whether it gets logits; otherwise it gets nats"""

    def __call__(self, micro_batch: int, scores: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        """Sum of nats of a micro-batch.

        Args:
            micro_batch: its number.
            scores: this rank's logits (N, b, V/tp), or the nats of each token (b, N).
            target, mask: (b, N).
        """
        ...


Asked: TypeAlias = Callable[[], bool]


def never() -> bool:
    """No rank asks to stop."""
    return False


class Engine(ABC):
    """Model, optimizer and stream memory of one rank.  :func:`build_engine` makes one.

    The weights are whatever was in memory until :meth:`draw` or :meth:`load`.

    Args:
        groups: passed to DeepSpeed; None if it makes its own.
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
        self._observer: Observer | None = None  # of the current evaluation step
        self._observed = 0  # micro-batches of it
        self.parameters = [p for name, module in stage.logical_modules() for p in logical_parameters(module, name)]
        self.optimizer = config.optimizer.build(self.parameters, sharding(config, layout))
        if scatters_sums(config) and config.optimizer.is_elementwise:
            # each group is reduced as soon as it is complete
            split_groups(self.optimizer, config.parallel.zero.reduce_bucket or SCATTERED_BUCKET)
        self._deepspeed = _initialize(stage, self.optimizer, config, groups)
        self._control = Control([p.local for p in self.parameters], device)
        self._update = update_of(self._deepspeed, self.parameters, config, MegatronGroups())
        splits_sequence = config.parallel.sequence_parallel and layout.tensor > 1
        self._whole = [p for p in self.parameters if p.partition_dim is None] if splits_sequence else []
        self._unguard = before_update(self._deepspeed, self._agree)
        self._asked: Asked = never
        self._result = StepResult(0.0, 0.0)  # of the current step, once all ranks have agreed
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
        return {index: layer.blank_memory(self.layout.micro_batch) for index, layer in runs_of(self.stage)}

    def train_step(self, step: StepInput, learning_rate: float, asked: Asked = never) -> StepResult:
        """Forward and backward of all micro-batches, one update, and the commit of the memory.  Collective.

        Before the update all ranks agree on the result.  If loss or gradient are not finite on any of them, all skip
        the update and discard the memory.

        Args:
            asked: whether this rank was asked to stop; read when the ranks agree.
        """
        set_learning_rate(self.optimizer, learning_rate)
        self._observer, self._asked = None, asked
        self._context.begin(self._micro_batches(step, training=True), self.memory)
        self._train(step)
        if self._result.is_finite:
            self.memory.commit()
        else:
            self.memory.discard()
        return self._result

    @contextmanager
    def timed(self) -> Iterator[StepTimer]:
        """Times the parts of the training step in its block, on this rank."""
        group = MegatronGroups.get_tensor_model_parallel_group()
        places = [(self.stage, "forward", "forward"), (self._deepspeed, UPDATE, "update")]
        with time_step(self.device, dist.get_process_group_ranks(group), places) as timer:
            yield timer

    def _agree(self) -> None:
        """Called between backward and update."""
        self._update.finish()
        self._update.sum_over_tensor_ranks(self._whole)
        self._result = self._control.agree(self._batch_loss(), self._update.norm(), self._asked())
        self._update.decide(self._result.grad_norm if self._result.is_finite else math.inf)

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
    def carries_memory(self) -> bool:
        """Whether any layer of the model, on any rank, carries memory from step to step."""
        model = self.config.model
        return any(model.mixer_of(layer).memory(model) for layer in range(model.layers))

    @property
    def holds_streams(self) -> bool:
        """Whether the micro-batch whose forward runs holds streams; idle ones, of uneven layouts, do not."""
        return self._context.position < self.layout.filled_micro_batches

    @property
    def updates(self) -> int:
        """Optimizer updates so far."""
        return self._state.updates

    def pieces(self) -> list[Piece]:
        """Everything on this rank that training changes, as views."""
        return self._state.pieces(self.memory)

    def draw(self) -> None:
        """Give the weights their initial values, which depend only on `run.seed` and their names.  Collective."""
        self._state.draw(self.config.run.seed)

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

    def held_weights(self) -> Iterator[HeldWeight]:
        """What this rank holds of the weights, for comparing copies."""
        return self._state.held_weights()

    def close(self) -> None:
        """Remove all hooks from the weights and from torch; otherwise the engine and its groups are never freed."""
        self._unguard()
        self._control.close()
        self._update.close()
        self._deepspeed.destroy()
        restore_linear()

    def _micro_batches(self, step: StepInput, training: bool) -> list[MicroBatch]:
        observer = self._observer
        return micro_batches(
            step,
            self.config,
            self.layout,
            masks=self.mask_version if training else None,
            targets=observer is None or not observer.wants_logits,
            sums=observer is None,
        )

    def _loss(self, scores: Tensor, labels: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        target, mask, weight = labels
        if self._observer is None:
            return scores * weight
        self._observed += 1
        return self._observer(self._observed - 1, scores, target, mask) * weight

    @abstractmethod
    def _train(self, step: StepInput) -> None: ...

    @abstractmethod
    def _batch_loss(self) -> Tensor | None:
        """Mean loss of the global batch after its backward pass, on the device; None on ranks that do not know it."""

    @abstractmethod
    def _evaluate(self, step: StepInput) -> float: ...


class WholeEngine(Engine):
    """Without a pipeline: tensor and data parallel, any ZeRO stage that the rules allow."""

    def __init__(self, config: Config, layout: Layout, device: Device) -> None:
        context, parallel = StageContext(StreamMemory({}, 0)), megatron_config(config.parallel.sequence_parallel)
        dtype = torch.bfloat16 if config.run.precision == "bf16" else torch.float32
        built = None
        if config.parallel.zero_stage == 3:
            built = takes_apart(deepspeed_config(config), dtype, MegatronGroups())
        with device.torch:
            stage = WholeModel(config.model, context, parallel, config.parallel.recompute, built)
        super().__init__(config, layout, device, context, stage, MegatronGroups())

    def _train(self, step: StepInput) -> None:
        self.stage.train()
        self._total = torch.zeros((), device=self.device.torch)
        for tokens, labels in portions(step, self.layout, self.device):
            loss = self._loss(self._deepspeed(tokens), labels)  # type: ignore[arg-type]
            self._total += loss.detach()
            self._deepspeed.backward(loss)
            self._deepspeed.step()  # updates after the last micro-batch

    def _batch_loss(self) -> Tensor:
        return self._mean(self._total)

    def _evaluate(self, step: StepInput) -> float:
        self.stage.eval()
        total = torch.zeros((), device=self.device.torch)
        with torch.no_grad():
            for tokens, labels in portions(step, self.layout, self.device):
                total += self._loss(self.stage(tokens), labels)  # type: ignore[arg-type]
        return float(self._mean(total))

    def _mean(self, total: Tensor) -> Tensor:
        dist.all_reduce(total, group=MegatronGroups.get_data_parallel_group())
        return total.double() / (self.layout.micro_batches * self.layout.data)


class PipelinedEngine(Engine):
    """With pipeline stages: DeepSpeed's 1F1B schedule, ZeRO-1."""

    def __init__(self, config: Config, layout: Layout, device: Device) -> None:
        context, parallel = StageContext(StreamMemory({}, 0)), megatron_config(config.parallel.sequence_parallel)
        layers, recompute = stage_layers(config), config.parallel.recompute
        stage = PipelineStage(config.model, layout, layers, context, parallel, recompute, self._loss)
        super().__init__(config, layout, device, context, stage, None)
        skip_loss(self._deepspeed)

    def _train(self, step: StepInput) -> None:
        self._deepspeed.train_batch(portions(step, self.layout, self.device))

    def _batch_loss(self) -> Tensor | None:
        if not self.layout.is_last_stage:
            return None
        loss = loss_of_batch(self._deepspeed)
        dist.all_reduce(loss, group=MegatronGroups.get_data_parallel_group())
        return loss / self.layout.data

    def _evaluate(self, step: StepInput) -> float:
        return float(self._deepspeed.eval_batch(portions(step, self.layout, self.device)))

    def close(self) -> None:
        super().close()
        release_graph(self._deepspeed)


def build_engine(config: Config, layout: Layout, device: Device, *, blank: bool = False) -> Engine:
    """The engine for this rank, with the weights that training starts from.  Collective.

    Args:
        config: `model.vocab_size` must be set.
        layout: of this rank.
        device: of this rank.
        blank: leave the weights unset, because they will be loaded; or call `draw` later.
    """
    quiet()
    engine = (PipelinedEngine if layout.pipeline > 1 else WholeEngine)(config, layout, device)
    if not blank:
        engine.draw()
    return engine


def _initialize(stage: Any, optimizer: torch.optim.Optimizer, config: Config, groups: MegatronGroups | None) -> Any:
    settings, zero = deepspeed_config(config), "zero_optimization"
    if config.parallel.zero_stage < 3:
        # DeepSpeed allocates whole buckets, and a bucket larger than all weights never fills
        elements = sum(weight.numel() for weight in stage.parameters())
        settings[zero]["reduce_bucket_size"] = min(settings[zero]["reduce_bucket_size"], elements)
    engine, *_ = deepspeed.initialize(
        model=stage, optimizer=optimizer, config=settings, mpu=groups, dist_init_required=False
    )
    silence_timers(engine)
    return engine
