"""The plan of a run on a layout and a device: memory, time, price."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from brt_dist.config.schema import Config, ParallelConfig
from brt_dist.planning.device_memory import RankMemory, rank_memory
from brt_dist.planning.devices import DeviceSpec
from brt_dist.planning.flops import TRAINING, forward_flops
from brt_dist.planning.memory import plan_of
from brt_dist.planning.model_sizes import ModelSizes
from brt_dist.planning.step_time import StepTime, step_time

_TOKEN_BYTES = 4  # bytes of a token on disk, at most
_SHOWN = ("tensor", "pipeline", "data", "zero_stage", "micro_batch", "sequence_parallel", "recompute", "stream_memory")


@dataclass(frozen=True)
class LayoutPlan:
    """What a layout costs.

    Attributes:
        parallel: the layout.
        device: of every rank.
        stages: memory of the ranks of each stage.
        time: of a step; None if it does not fit.
        tokens: of a step.
        flops: of a step, without recompute.
        peak: FLOP/s of all devices.
        steps: of the run.
        checkpoint_every: steps.
        saved: bytes of a checkpoint.
    """

    parallel: ParallelConfig
    device: DeviceSpec
    stages: tuple[RankMemory, ...]
    time: StepTime
    tokens: int
    flops: float
    peak: float
    steps: int
    checkpoint_every: int
    saved: float

    @cached_property
    def fullest(self) -> int:
        """The stage whose ranks need most of their device."""
        return max(range(len(self.stages)), key=lambda stage: self.stages[stage].device)

    @property
    def memory(self) -> RankMemory:
        return self.stages[self.fullest]

    @property
    def host(self) -> int:
        """Most bytes of host memory that the ranks of a node need."""
        return max(stage.host for stage in self.stages) * min(self.device.devices_per_node, self.parallel.world_size)

    @property
    def problem(self) -> str | None:
        """Why it does not fit; None if it does."""
        if self.memory.device > self.device.room:
            name, size = max(self.memory.parts(), key=lambda part: part[1])
            return f"needs {gb(self.memory.device)} of {gb(self.device.room)} on a device, most for {name} ({gb(size)})"
        if self.host > self.device.host_memory:
            return f"needs {gb(self.host)} of {gb(self.device.host_memory)} host memory on a node"
        return None

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.time.total

    @property
    def mfu(self) -> float:
        return self.flops / self.time.total / self.peak

    @property
    def days(self) -> float:
        return self.steps * self.time.total / 86400

    @property
    def cost(self) -> float | None:
        """Dollars for all steps; None without a price."""
        return None if self.device.price is None else self.device.price * self.parallel.world_size * self.days * 24

    @property
    def limit(self) -> str:
        """The part that takes most of a step."""
        return max(asdict(self.time).items(), key=lambda part: part[1])[0]

    def to_json(self) -> dict[str, Any]:
        return {
            "layout": layout_json(self.parallel),
            "device": self.device.model_dump(),
            "devices": self.parallel.world_size,
            "fits": self.problem is None,
            "problem": self.problem,
            "fullest_stage": self.fullest,
            "memory": [stage.to_json() for stage in self.stages],
            "host_memory_per_node": self.host,
            "step_seconds": self.time.to_json(),
            "tokens_per_step": self.tokens,
            "flops_per_step": self.flops,
            "tokens_per_second": self.tokens_per_second,
            "mfu": self.mfu,
            "limit": self.limit,
            "steps": self.steps,
            "tokens": self.steps * self.tokens,
            "days": self.days,
            "cost": self.cost,
            "checkpoint_bytes": self.saved,
            "checkpoint_bytes_per_second": self.saved / (self.checkpoint_every * self.time.total),
            "data_bytes_per_second": _TOKEN_BYTES * self.tokens_per_second,
        }


class Planner:
    """Plans a config on any layout; `model.vocab_size` must be set."""

    def __init__(self, config: Config, device: DeviceSpec) -> None:
        self.config, self.device, self.sizes = config, device, ModelSizes(config)
        found = plan_of(config.model_copy(update={"parallel": ParallelConfig()}))
        self.parameters = found.parameters
        self.flops_per_token = TRAINING * forward_flops(config.model)
        stream = found.fullest_rank.carried // config.data.streams
        whole = config.optimizer.state_bytes(_whole(config), 1)
        self.saved = 4.0 * self.parameters + whole + stream * config.data.streams

    def memory(self, parallel: ParallelConfig) -> tuple[RankMemory, ...]:
        return tuple(
            rank_memory(self.sizes, parallel, stage, self.device.execution) for stage in range(parallel.pipeline)
        )

    def plan(self, parallel: ParallelConfig) -> LayoutPlan:
        config, device = self.config, self.device
        stages = self.memory(parallel)
        tokens = config.data.streams * config.data.segment
        peak = device.peak_flops.bf16 if config.run.precision == "bf16" else device.peak_flops.fp32
        return LayoutPlan(
            parallel=parallel,
            device=device,
            stages=stages,
            time=step_time(self.sizes, parallel, device, stages, self.saved),
            tokens=tokens,
            flops=self.flops_per_token * tokens,
            peak=peak * parallel.world_size,
            steps=config.run.steps,
            checkpoint_every=config.run.checkpoint_every,
            saved=self.saved,
        )


def layout_json(parallel: ParallelConfig) -> dict[str, Any]:
    """The settings of a layout that a search chooses."""
    shown: dict[str, Any] = {name: getattr(parallel, name) for name in _SHOWN}
    return {**shown, "offload_optimizer": parallel.zero.offload_optimizer}


def layout_words(layout: Mapping[str, Any]) -> str:
    """A layout as overrides for the command line."""
    keys = ((f"zero.{key}" if key == "offload_optimizer" else key, value) for key, value in layout.items())
    return " ".join(f"parallel.{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in keys)


def gb(size: float) -> str:
    """Bytes in GB, for messages."""
    return f"{size / 1e9:,.1f} GB"


def _whole(config: Config) -> Any:
    from brt_dist.config.halves import Matrix
    from brt_dist.optim.base import LocalMatrix
    from brt_dist.planning.parameters import stage_parameters

    def part(matrix: Matrix) -> LocalMatrix:
        shape = (matrix.rows,) if matrix.columns == 1 else (matrix.rows, matrix.columns)
        return LocalMatrix(shape, None, 1, matrix.rows, (matrix.matrices, 1))

    whole = config.model_copy(update={"parallel": ParallelConfig()})
    return [part(matrix) for matrix in stage_parameters(whole, 0)]
