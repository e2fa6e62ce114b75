"""Bytes of all tensors that are alive, whoever keeps them."""

import gc

import torch

from brt_dist.parallel.deepspeed_internals import before_update
from brt_dist.parallel.engine import Engine
from tests.scale.world import FakeWorld

_collect = gc.collect  # which does nothing in `meta_world`


class Live:
    """A context manager that counts the tensors on the meta device that were made in its block."""

    def __enter__(self) -> "Live":
        gc.collect()
        gc.freeze()  # what is there now is not listed, nor searched again and again
        return self

    def __exit__(self, *_: object) -> None:
        gc.unfreeze()

    def bytes(self) -> int:
        """Of their storages."""
        _collect()
        # by type: isinstance would ask proxies for their class, which is slow
        tensors = (one for one in gc.get_objects() if issubclass(type(one), torch.Tensor) and one.is_meta)
        storages = (one.untyped_storage() for one in tensors)
        return sum({storage._cdata: storage.nbytes() for storage in storages}.values())

    def at_update(self, world: FakeWorld, engine: Engine) -> int:
        """In the second step, when backward is done and the update not begun; the first makes the optimizer's state."""
        engine.train_step(world.inputs(1), 1e-3)
        found: list[int] = []
        undo = before_update(engine._deepspeed, lambda: found.append(self.bytes()))
        engine.train_step(world.inputs(2), 1e-3)
        undo()
        return found[-1]
