"""Measures what a rank holds in memory between steps, to compare with the plan."""

from torch import Tensor

from brt_dist.parallel.deepspeed_internals import shard, whole_size
from brt_dist.parallel.engine import Engine
from brt_dist.planning.memory import Held


def held(engine: Engine) -> Held:
    """Measure this rank.  Call it after the first update, which allocates the optimizer's state."""
    weights = [shard(parameter.local) for parameter in engine.parameters]
    working = {_place(tensor) for tensor in weights}
    optimizer: dict[tuple[int, int], int] = {}
    for master, state in engine.optimizer.state.items():
        for tensor in (master.data, *state.values()):
            if isinstance(tensor, Tensor) and tensor.numel() > 1 and _place(tensor) not in working:
                optimizer[_place(tensor)] = tensor.numel() * tensor.element_size()
    return Held(
        parameters=sum(whole_size(parameter.local) for parameter in engine.parameters),
        weights=sum(tensor.numel() * tensor.element_size() for tensor in weights),
        optimizer=sum(optimizer.values()),
        carried=sum(values.numel() * values.element_size() for *_, values in engine.memory.tensors()),
    )


def _place(tensor: Tensor) -> tuple[int, int]:
    return tensor.data_ptr(), tensor.numel()
