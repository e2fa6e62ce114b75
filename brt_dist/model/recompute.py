"""What backward computes again instead of keeping it from the forward."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch.utils.checkpoint import checkpoint

Recompute: TypeAlias = Literal["none", "attention", "layer"]
Call: TypeAlias = Callable[..., Any]
"""Called with a function and its arguments"""


def called(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function and keep its activations for backward."""
    return function(*arguments)


def recomputed(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a pure function and keep its arguments only; backward runs it again."""
    if not torch.is_grad_enabled():
        return function(*arguments)
    # masks are keyed, no global generator is drawn from: nothing to restore
    return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)


class Calls(NamedTuple):
    """How the parts of a network are called."""

    layer: Call
    mixer: Call
    """the mixer of a layer"""
    enter: Call
    """what a mixer feeds back (`model.feedback`)"""


def calls(recompute: Recompute) -> Calls:
    """none: keep all; attention: run mixers again, keep the rest; layer: keep the inputs of layers only."""
    return {
        "none": Calls(called, called, called),
        "attention": Calls(called, recomputed, recomputed),
        "layer": Calls(recomputed, called, recomputed),
    }[recompute]
