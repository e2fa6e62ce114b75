"""Records what a rank asks of its device and of other ranks: collectives, host reads, synchronisations; in order.

Collectives are seen where torch dispatches them, whatever name or copy of a function DeepSpeed, Megatron or we call
them by.  With the process groups of `world`, which move nothing, one process can be any rank of any layout.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

_OPS = {
    "allreduce_": "all_reduce",
    "allreduce_coalesced_": "all_reduce",
    "_allgather_base_": "all_gather",
    "allgather_": "all_gather",
    "allgather_into_tensor_coalesced_": "all_gather",
    "_reduce_scatter_base_": "reduce_scatter",
    "reduce_scatter_": "reduce_scatter",
    "reduce_scatter_tensor_coalesced_": "reduce_scatter",
    "alltoall_": "all_to_all",
    "alltoall_base_": "all_to_all",
    "broadcast_": "broadcast",
    "reduce_": "reduce",
    "gather_": "gather",
    "scatter_": "scatter",
    "send": "send",
    "recv_": "recv",
    "barrier": "barrier",
}
_READS = (
    "item",
    "tolist",
    "cpu",
    "numpy",
    "__float__",
    "__int__",
    "__bool__",
    "__index__",
    "nonzero",
    "equal",
    "allclose",
)
_SYNCHRONIZING = ("_local_scalar_dense", "nonzero", "masked_select")  # below Python
_OURS = ("brt_dist", "deepspeed", "megatron", "launch")


@dataclass(frozen=True)
class Collective:
    """One call of a collective, or of send and recv.

    Attributes:
        phase: of the step; see `Recorder.phase`.
        op: "all_reduce", "reduce_scatter", "all_gather", "reduce", "broadcast", "send", "recv", "barrier", ...
        group: "world", or the axis of the layout: "data", "tensor", "pipe", "model" (tensor and pipe), "tied", "other".
        ranks: size of the group.
        dtype: of what is sent.
        bytes: of the whole tensor: what all_gather returns, what reduce_scatter takes.
        shape: of the tensor, for the check that two ranks agree.
        asynchronous: whether the caller continues before it is done.
        members: global ranks of the group.
        peer: of send and recv, the global rank at the other end.
    """

    phase: str
    op: str
    group: str
    ranks: int
    dtype: torch.dtype
    bytes: int
    shape: tuple[int, ...]
    asynchronous: bool
    members: tuple[int, ...] = field(default=(), compare=False, repr=False)
    peer: int | None = field(default=None, compare=False, repr=False)

    @property
    def wire_bytes(self) -> float:
        """What a rank sends over its link if the collective is a ring."""
        share = (self.ranks - 1) / self.ranks
        if self.op == "all_reduce":
            return 2 * share * self.bytes
        if self.op in ("all_gather", "reduce_scatter", "all_to_all"):
            return share * self.bytes
        return 0.0 if self.op in ("recv", "barrier") or self.ranks == 1 else float(self.bytes)


@dataclass(frozen=True)
class HostRead:
    """The host waited for a value of the device.

    Attributes:
        phase: of the step.
        how: "item", "tolist", ...
        where: file and line of the first caller in brt_dist, DeepSpeed or Megatron.
    """

    phase: str
    how: str
    where: str


class Recorder:
    """A context manager that records until it ends; `clear` starts again.

    Args:
        kind: names a process group ("data", ...).
        on_host: tensors that live on the host also where the device is a GPU; reading them waits for nothing.
    """

    def __init__(
        self,
        kind: Callable[[dist.ProcessGroup], str] = lambda group: "other",
        on_host: Callable[[], Sequence[Tensor]] = lambda: (),
    ) -> None:
        self._kind, self._on_host = kind, on_host
        self._phase = ""
        self._stack = ExitStack()
        self._in_read = False
        self.clear()

    def clear(self) -> None:
        """Forget what was recorded."""
        self.collectives: list[Collective] = []
        self.host_reads: list[HostRead] = []
        self.synchronizations: list[str] = []  # where

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Records in the block belong to phase `name`; phases nest, and the inner one counts."""
        before, self._phase = self._phase, name
        try:
            yield
        finally:
            self._phase = before

    def of(self, group: str | None = None, op: str | None = None, phase: str | None = None) -> list[Collective]:
        """The collectives of a group, operation and phase, in order."""
        return [
            one
            for one in self.collectives
            if group in (None, one.group) and op in (None, one.op) and phase in (None, one.phase)
        ]

    def __enter__(self) -> "Recorder":
        from deepspeed.accelerator import get_accelerator

        patch = self._stack.enter_context(pytest.MonkeyPatch.context())
        for owner in (type(get_accelerator()), torch.cuda):
            patch.setattr(owner, "synchronize", self._synchronized)
        self._stack.enter_context(_Dispatch(self))
        self._stack.enter_context(_Functions(self))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def synchronized(self) -> None:
        """Record that the host waited for all of the device's work."""
        self.synchronizations.append(f"{self._phase} {_caller()}")

    def _synchronized(self, *_: Any, **__: Any) -> None:
        self.synchronized()

    def _read(self, how: str, tensor: Tensor) -> None:
        if all(tensor is not one for one in self._on_host()):
            self.host_reads.append(HostRead(self._phase, how, _caller()))

    def _collective(self, name: str, arguments: Sequence[Any], is_asynchronous: bool) -> None:
        boxed = next(a for a in arguments if isinstance(a, torch.ScriptObject))
        group = dist.ProcessGroup.unbox(boxed)
        tensors = [t for a in arguments for t in _tensors(a)]
        largest = max(tensors, key=lambda t: t.numel() * t.element_size())
        size = largest.numel() * largest.element_size()
        if name in ("allgather_", "reduce_scatter_", "alltoall_"):  # lists of one tensor a rank
            size *= group.size()
        shape = tuple(largest.shape)
        if name == "barrier":
            size, shape = 0, ()
        kind, members = self._kind(group), tuple(dist.get_process_group_ranks(group))
        peer = members[arguments[2]] if name in ("send", "recv_") else None
        self.collectives.append(
            Collective(
                self._phase,
                _OPS[name],
                kind,
                len(members),
                largest.dtype,
                size,
                shape,
                is_asynchronous,
                members,
                peer,
            )
        )


class _Dispatch(TorchDispatchMode):
    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.split("::")[-1]
        if func.namespace == "c10d" and name in _OPS:
            self._recorder._collective(name, args, _is_asynchronous(func, args))
        elif name in _SYNCHRONIZING and not self._recorder._in_read:
            self._recorder._read(name, args[0])
        elif name == "index" and any(t is not None and t.dtype == torch.bool for t in args[1]):
            self._recorder._read("boolean index", args[0])  # its size is known only when it is done
        return func(*args, **(kwargs or {}))


class _Functions(TorchFunctionMode):
    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name not in _READS or not args or not isinstance(args[0], Tensor) or self._recorder._in_read:
            return func(*args, **(kwargs or {}))
        self._recorder._read(name, args[0])
        self._recorder._in_read = True
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self._recorder._in_read = False


def _is_asynchronous(operator: Any, arguments: Sequence[Any]) -> bool:
    """Values that are the default are left out of the arguments."""
    for place, argument in enumerate(operator._schema.arguments):
        if argument.name == "async_op":
            return bool(arguments[place] if place < len(arguments) else argument.default_value)
    return False


def _tensors(argument: Any) -> Iterator[Tensor]:
    if isinstance(argument, Tensor):
        yield argument
    elif isinstance(argument, list | tuple):
        for one in argument:
            yield from _tensors(one)


def _caller() -> str:
    """File and line of the innermost frame in a package that we answer for."""
    frame: Any = sys._getframe()
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        for package in _OURS:
            if package in path.parts and "tests" not in path.parts:
                return f"{'/'.join(path.parts[path.parts.index(package) :])}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere"
