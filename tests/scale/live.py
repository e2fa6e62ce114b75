"""Bytes of all tensors that are alive, whoever keeps them."""

import gc
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from brt_dist.parallel.deepspeed_internals import before_update
from brt_dist.parallel.engine import Engine
from tests.scale.world import FakeWorld

_collect = gc.collect  # which does nothing in `meta_world`


@dataclass(frozen=True)
class Bytes:
    """Of storages: those on the meta device, which stands for a GPU, and those with values."""

    device: int
    host: int

    @property
    def all(self) -> int:
        return self.device + self.host


class Live:
    """A context manager that counts the tensors that were made in its block."""

    def __enter__(self) -> "Live":
        gc.collect()
        gc.freeze()  # existing tensors are not listed, nor searched again and again
        return self

    def __exit__(self, *_: object) -> None:
        gc.unfreeze()

    def bytes(self, without: Iterable[torch.Tensor] = ()) -> Bytes:
        """What is alive now, apart from the storages of some tensors."""
        _collect()
        # by type: isinstance would ask proxies for their class, which is slow
        tensors = [one for one in gc.get_objects() if issubclass(type(one), torch.Tensor)]
        apart = {one.untyped_storage()._cdata for one in without}
        found: dict[bool, dict[int, int]] = {True: {}, False: {}}
        for one in tensors:
            storage = one.untyped_storage()
            if storage._cdata not in apart:
                found[one.is_meta][storage._cdata] = storage.nbytes()
        return Bytes(device=sum(found[True].values()), host=sum(found[False].values()))

    def in_step(self, world: FakeWorld, engine: Engine, when: str) -> Bytes:
        """In the second step, as the first makes the optimizer's state.

        Args:
            when: where the last "backward" begins, where it is "done", or where the "update" begins.
        """
        shapes = always_on_meta(engine)
        found: list[Bytes] = []

        def look(now: str) -> None:
            if now == when:
                found.append(self.bytes(shapes))

        engine.train_step(world.inputs(1), 1e-3)
        first = engine.parameters[0].local  # backward ends with it
        hook = first.register_post_accumulate_grad_hook(lambda _: look("done"))
        undo = before_update(engine._deepspeed, lambda: look("update"))
        backward = torch.autograd.backward

        def watched(*arguments: Any, **named: Any) -> None:
            look("backward")
            backward(*arguments, **named)

        torch.autograd.backward = watched
        try:
            engine.train_step(world.inputs(2), 1e-3)
        finally:
            torch.autograd.backward = backward
            undo()
            hook.remove()
        return found[-1]


def always_on_meta(engine: Engine) -> list[torch.Tensor]:
    """Tensors that DeepSpeed makes for their shapes: they need no memory on any device."""
    groups = getattr(engine._deepspeed.optimizer, "round_robin_bit16_meta", ())
    return [one for group in groups for one in group]
