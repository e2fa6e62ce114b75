"""A rank of a layout of any size, in one process: the process groups exist, but move nothing.

What other ranks would send is whatever the tensor held before, so numbers mean nothing here; operations, types, sizes
and their order do.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from brt_dist.config.schema import Config
from brt_dist.parallel.device import Device, choose
from brt_dist.parallel.engine import Engine, StepResult, build_engine
from brt_dist.parallel.layout import Layout, finalize, initialize
from brt_dist.parallel.micro_batches import StepInput
from tests.scale.accelerator import like_a_gpu
from tests.scale.recorder import Recorder


class FakeDevice(Device):
    @property
    def backend(self) -> str:
        return "fake"


@dataclass(frozen=True)
class MadeGroup:
    """A process group that was requested.

    Attributes:
        ranks: of the group, on whatever rank.
        backend: "gloo", "nccl", ...; None: that of the world.
        is_member: whether this rank is in it.
    """

    ranks: tuple[int, ...]
    backend: str | None
    is_member: bool


@dataclass
class FakeWorld:
    """This process as one rank of a world.

    Attributes:
        layout: with the place of the rank.
        device: a CPU.
        groups: all process groups that were made, in order.
    """

    config: Config
    layout: Layout
    device: Device
    groups: list[MadeGroup] = field(default_factory=list)
    _recorder: Recorder | None = None  # the one under way

    def kind(self, group: dist.ProcessGroup) -> str:
        """Name of a process group, for the recorder."""
        if dist.group.WORLD is not None and group.group_name == dist.group.WORLD.group_name:
            return "world"
        ranks = dist.get_process_group_ranks(group)
        return next((name for name, expected in axes(self.layout).items() if ranks == expected), "other")

    @contextmanager
    def engine(self) -> Iterator[Engine]:
        """The engine of this rank, built as in training."""
        engine = build_engine(self.config, self.layout, self.device)
        try:
            yield engine
        finally:
            engine.close()

    def inputs(self, number: int = 1) -> StepInput:
        """A step of tokens 0, in which every stream starts a document."""
        return step_input(self.config, self.layout, number)

    def recorded_step(self, engine: Engine, recorder: Recorder, number: int) -> StepResult:
        """One training step, recorded in the phases "compute", "control" (before the update) and "update"."""
        with pytest.MonkeyPatch.context() as patch, recorder.phase("compute"):
            deepspeed = engine._deepspeed
            patch.setattr(deepspeed, "_take_model_step", _in_phase(recorder, "control", deepspeed._take_model_step))
            patch.setattr(deepspeed.optimizer, "step", _in_phase(recorder, "update", deepspeed.optimizer.step))
            return engine.train_step(self.inputs(number), 1e-3)

    @contextmanager
    def recorder(self, engine: Engine | None = None) -> Iterator[Recorder]:
        """Records what this rank does; the counts of updates that an optimizer keeps on the host are no host reads."""

        def on_host() -> list[torch.Tensor]:
            states = engine.optimizer.state.values() if engine is not None else ()
            return [state["step"] for state in states if "step" in state]

        with Recorder(self.kind, on_host) as recorder:
            self._recorder = recorder
            yield recorder
            self._recorder = None

    def waited(self) -> None:
        """DeepSpeed waits on the host for the device."""
        if self._recorder is not None:
            self._recorder.synchronized()


def step_input(config: Config, layout: Layout, number: int) -> StepInput:
    """What a rank reads in a step of tokens 0, in which every stream starts a document."""
    streams, segment = len(layout.local_streams), config.data.segment
    starts = torch.zeros(streams, segment // config.model.window, dtype=torch.bool)
    starts[:, 0] = True
    reads = layout.is_first_stage or layout.is_last_stage
    tokens = torch.zeros(streams, segment, dtype=torch.int64) if reads else None
    mask = torch.ones(streams, segment, dtype=torch.bool) if reads else None
    return StepInput(number, starts, tokens, tokens, mask, layout.streams * segment)


@contextmanager
def fake_world(config: Config, rank: int = 0) -> Iterator[FakeWorld]:
    """This process as rank `rank` of the layout of `config`."""
    from deepspeed.comm import comm
    from deepspeed.runtime.pipe import p2p
    from deepspeed.utils import groups

    layout = Layout.of(config, rank)
    choose("cpu", 0)
    world = FakeWorld(config, layout, FakeDevice("cpu", 0))
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        for module in (comm, groups, p2p):  # what they remember of a world
            for name, value in vars(module).items():
                if name in ("cdb", "mpu", "mesh_device", "_grid", "_groups") or name.endswith(("_GROUP", "_RANK")):
                    patch.setattr(module, name, None if not isinstance(value, dict) else {})
        patch.setattr(dist, "new_group", _recording(dist.new_group, world))
        _answer_questions(patch, config, layout)
        stack.enter_context(like_a_gpu(world.waited))
        stack.callback(finalize)
        initialize(layout, world.device, store=FakeStore())
        yield world


def axes(layout: Layout) -> dict[str, list[int]]:
    """The ranks of each group of a rank, by the name that the recorder gives it."""
    tp, dp, pp = layout.tensor, layout.data, layout.pipeline
    first = layout.stage * dp * tp
    tensor = [first + layout.data_rank * tp + t for t in range(tp)]
    pipe = [(s * dp + layout.data_rank) * tp + layout.tensor_rank for s in range(pp)]
    return {
        "data": [first + d * tp + layout.tensor_rank for d in range(dp)],
        "tensor": tensor,
        "pipe": pipe,
        "model": [(s * dp + layout.data_rank) * tp + t for s in range(pp) for t in range(tp)],
        "tied": [pipe[0], pipe[-1]],
    }


def _recording(make: Any, world: FakeWorld) -> Any:
    """`new_group`, always of the fake kind."""

    def new_group(ranks: Sequence[int] | None = None, *given: Any, backend: str | None = None, **named: Any) -> Any:
        members = tuple(range(world.layout.world_size) if ranks is None else ranks)
        world.groups.append(MadeGroup(members, backend, world.layout.rank in members))
        return make(ranks, *given, **named)

    return new_group


def _in_phase(recorder: Recorder, name: str, function: Any) -> Any:
    def call(*arguments: Any, **named: Any) -> Any:
        with recorder.phase(name):
            return function(*arguments, **named)

    return call


def _answer_questions(patch: pytest.MonkeyPatch, config: Config, layout: Layout) -> None:
    """What DeepSpeed requests from other ranks and reads on the host.

    A stage of its pipeline asks the one before for the shape of what it will send.
    """
    from deepspeed.runtime.pipe import p2p
    from deepspeed.runtime.pipe.engine import TENSOR_META_SIZE, PipelineEngine
    from deepspeed.runtime.zero import partitioned_param_coordinator

    # ZeRO-3 compares the order of layers, in the first step
    patch.setattr(partitioned_param_coordinator, "assert_ints_same_as_other_ranks", lambda values: None)
    parallel = config.parallel
    rows = config.data.segment // (parallel.tensor if parallel.sequence_parallel else 1)
    dtype = torch.bfloat16 if config.run.precision == "bf16" else torch.float32
    shape = (rows, layout.micro_batch, config.model.width)
    receive = p2p.recv

    def recv(tensor: torch.Tensor, *given: Any, **named: Any) -> Any:
        result = receive(tensor, *given, **named)
        if tensor.shape == (TENSOR_META_SIZE,):
            told = [0, PipelineEngine.DTYPE_TO_ID[dtype], len(shape), *shape]
            tensor[: len(told)] = torch.tensor(told, dtype=tensor.dtype)
        return result

    patch.setattr(p2p, "recv", recv)
