"""What the backward pass recomputes instead of keeping from the forward pass."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch.utils.checkpoint import checkpoint

from brt_dist.model.remade import rerun_in_backward

Recompute: TypeAlias = Literal["none", "attention", "layer"]
Call: TypeAlias = Callable[..., Any]
"""Called with a function and its arguments"""


def called(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function and keep its activations for the backward pass."""
    return function(*arguments)


def recomputed(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a pure function and keep only its arguments; the backward pass runs it again."""
    if not torch.is_grad_enabled():
        return function(*arguments)

    def run(*arguments: Any) -> Any:
        with rerun_in_backward():
            return function(*arguments)

    # masks are keyed and no global generator is used: nothing to restore
    return checkpoint(run, *arguments, use_reentrant=False, preserve_rng_state=False)


class Calls(NamedTuple):
    """How the parts of a network are called."""

    layer: Call
    mixer: Call
    """the mixer of a layer"""
    enter: Call
    """what a mixer feeds back (`model.feedback`)"""


def calls(recompute: Recompute) -> Calls:
    """none: keep all; attention: rerun mixers, keep the rest; layer: keep only the inputs of layers."""
    return {
        "none": Calls(called, called, called),
        "attention": Calls(called, recomputed, recomputed),
        "layer": Calls(recomputed, called, recomputed),
    }[recompute]
