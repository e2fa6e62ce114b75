"""Distributed pretraining of Block-Recurrent Transformers."""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from brt_dist.inference import load as load


def __getattr__(name: str) -> Any:
    """`brt_dist.load`, imported when it is used: it needs torch."""
    if name == "load":
        return importlib.import_module("brt_dist.inference").load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
