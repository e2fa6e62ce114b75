"""Decides where row operations (norms, softmax) run as one kernel each, instead of one kernel per torch operation."""

from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor


def fused(x: Tensor) -> Any | None:
    """`triton_rows`, for tensors on a GPU; None if torch handles the rows."""
    return _kernels() if x.is_cuda and x.dtype != torch.float64 else None


@cache
def _kernels() -> Any | None:
    return None if find_spec("triton") is None else import_module("brt_dist.model.triton_rows")
