"""A rank of a layout of any size with weights of any size: everything is on the meta device, which has no values.

The engine is the one that trains.  Where it reads a value on the host it gets a finite number, so that it takes the
path of an ordinary step.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from brt_dist.config.schema import Config
from brt_dist.parallel.engine import Engine
from tests.scale.world import FakeDevice, FakeWorld, fake_world

_META = torch.device("meta")


class _MetaDevice(FakeDevice):
    @property
    def torch(self) -> torch.device:
        return torch.device("meta")


class _Answers(TorchFunctionMode):
    """A tensor without values is read as zeros where several numbers are asked for at once, a single one as 1."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if func in (torch.empty, torch.tensor) and kwargs.get("dtype") == torch.int32:
            kwargs = {**kwargs, "device": "cpu"}  # stages tell each other shapes in it, and read them
        if args and isinstance(args[0], Tensor) and args[0].is_meta:
            tensor = args[0]
            if name in ("item", "__float__", "__int__", "__index__"):
                return _one(tensor)
            if name == "__bool__":
                return False
            if name in ("tolist", "cpu"):
                known = torch.zeros(tensor.shape, dtype=tensor.dtype, device="cpu")
                return known.tolist() if name == "tolist" else known
        return func(*args, **kwargs)


class _ToHost(TorchDispatchMode):
    """What comes from a tensor without values to the host is zero: for offload, and ZeRO-3 while it starts."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        aten = torch.ops.aten
        if func is aten.copy_.default and args[1].is_meta and not args[0].is_meta:
            return args[0]
        if func is aten._to_copy.default and args[0].is_meta and torch.device(kwargs.get("device") or "meta") != _META:
            return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype, device="cpu")
        return func(*args, **kwargs)


@contextmanager
def meta_world(config: Config, rank: int = 0) -> Iterator[FakeWorld]:
    """This process as rank `rank` of the layout of `config`, without memory for any tensor."""
    with fake_world(config, rank) as world, pytest.MonkeyPatch.context() as patch:
        from deepspeed.accelerator import get_accelerator

        for name in ("device_name", "current_device_name"):
            patch.setattr(type(get_accelerator()), name, lambda self, index=None: "meta")
        # DeepSpeed collects garbage dozens of times while it starts, to print how much memory is free
        patch.setattr(gc, "collect", lambda generation=2: 0)
        # the values would be drawn on the host, billions of them
        patch.setattr("brt_dist.parallel.engine.initialize", lambda module, seed, prefix: None, raising=False)
        patch.setattr(Engine, "draw", lambda self: None, raising=False)
        world.device = _MetaDevice("cpu", 0)
        parallel = config.parallel
        uses_host = parallel.zero_stage == 3 or parallel.zero.offload_optimizer != "none"
        if parallel.zero.offload_parameters != "none":
            _allocates_on_host(patch)
        with torch.device("meta"), _Answers(), _ToHost() if uses_host else nullcontext():
            yield world


def _allocates_on_host(patch: pytest.MonkeyPatch) -> None:
    """DeepSpeed allocates weights in host memory by leaving the device out."""
    from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3 as Zero

    allocate = Zero._create_param_groups_fp16_flat_cpu_memory

    def on_host(zero: Any) -> None:
        with torch.device("cpu"):
            allocate(zero)

    patch.setattr(Zero, "_create_param_groups_fp16_flat_cpu_memory", on_host)


def _one(tensor: Tensor) -> bool | int | float:
    if tensor.dtype == torch.bool:
        return False
    return 1.0 if tensor.dtype.is_floating_point else 1
