"""Tensors that the backward pass makes again: those that cost a pass over memory, such as norms and layouts.

Matrix products and attention need their inputs for backward.  Where an input is quickly made from something that is
kept anyway, keeping it as well would only cost memory.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef

_rerun: ContextVar[bool] = ContextVar("rerun", default=False)


@contextmanager
def rerun_in_backward() -> Iterator[None]:
    """All of the block is run again by the backward pass (`recompute.recomputed`), which keeps nothing of it."""
    token = _rerun.set(True)
    try:
        yield
    finally:
        _rerun.reset(token)


class Remade:
    """Tensors that are made here, and made again for the backward passes of those who read them in `read`.

    Values are the same bit for bit: what makes a tensor is a function of its arguments alone.
    """

    def __init__(self) -> None:
        self._recipes: dict[int, _Recipe] = {}  # by storage
        self._alive: list[Tensor] = []  # or another tensor could get the storage of one of them

    def made(self, make: Callable[..., Tensor], *arguments: Any) -> Tensor:
        """make(*arguments).  Tensors among the arguments are kept, but for those that were made here as well.

        Args:
            make: the result depends on the arguments only.
        """
        out = make(*arguments)
        if torch.is_grad_enabled() and not _rerun.get():
            self._recipes[_storage(out)] = _Recipe(make, tuple(map(self._kept, arguments)))
            self._alive.append(out)
        return out

    @contextmanager
    def read(self) -> Iterator[None]:
        """What is called in the block keeps a recipe of each tensor that was made here, before or in the block."""
        if not self._recipes:
            yield
            return
        try:
            with saved_tensors_hooks(self._pack, _unpack):
                yield
        finally:
            self._recipes.clear()  # the hooks, and with them this object, live as long as the graph
            self._alive.clear()

    def _pack(self, saved: Tensor) -> Any:
        recipe = self._recipes.get(_storage(saved))
        if recipe is not None:
            recipe.awaited += 1
            return _View(recipe, saved.size(), saved.stride(), int(saved.storage_offset()))
        # the result of a function that keeps it would keep the function
        return saved if saved.is_leaf else saved.detach()

    def _kept(self, argument: Any) -> Any:
        if not isinstance(argument, Tensor):
            return argument
        if (recipe := self._recipes.get(_storage(argument))) is not None:
            return _View(recipe, argument.size(), argument.stride(), int(argument.storage_offset()))
        # a vector may be a weight, which ZeRO-3 takes away after the forward pass of its module; it is small
        is_vector = argument.numel() == max(argument.shape, default=1)
        return argument.detach().clone() if is_vector else argument.detach()


class _Recipe:
    """How a tensor is made; it is kept from the first time that it is needed to the last."""

    def __init__(self, make: Callable[..., Tensor], arguments: tuple[Any, ...]) -> None:
        self._make, self._arguments = make, arguments
        self._made: Tensor | None = None
        self.awaited = 0  # readers that did not need it yet

    def take(self) -> Tensor:
        made = self._made
        if made is None:
            with torch.no_grad():
                made = self._make(*(_unpack(argument) for argument in self._arguments))
        self.awaited -= 1
        self._made = made if self.awaited > 0 else None
        return made


class _View(NamedTuple):
    """A view of a tensor that is made again."""

    recipe: _Recipe
    size: torch.Size
    stride: tuple[int, ...]
    offset: int


def _unpack(kept: Any) -> Any:
    if not isinstance(kept, _View):
        return kept
    return kept.recipe.take().as_strided(kept.size, kept.stride, kept.offset)


def _storage(tensor: Tensor) -> int:
    return StorageWeakRef(tensor.untyped_storage()).cdata
