"""Distributed pretraining of Block-Recurrent Transformers."""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from brt_dist.generation.choose import Sampling as Sampling
    from brt_dist.inference import TrainedModel as TrainedModel
    from brt_dist.inference import load as load

_EXPORTED = {
    "load": "brt_dist.inference",
    "TrainedModel": "brt_dist.inference",
    "Sampling": "brt_dist.generation.choose",
}


def __getattr__(name: str) -> Any:
    """The names for scripts, imported on first use because they need torch."""
    if name in _EXPORTED:
        return getattr(importlib.import_module(_EXPORTED[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
