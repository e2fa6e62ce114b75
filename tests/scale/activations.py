"""Memory that a forward pass leaves for its backward pass, and operations called: counted on tensors without data."""

import gc
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode


class Operations(TorchDispatchMode):
    """Counts the operations in the block, views left out, and knows the memory that they made."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self._made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.is_view:
            return result
        self.count += 1
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                self._made[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        return result

    def bytes_left(self, without: Iterable[Tensor]) -> int:
        """Memory made in the block and still in use, apart from that of some tensors."""
        gc.collect()
        apart = {tensor.untyped_storage()._cdata for tensor in without}
        return sum(size for key, (made, size) in self._made.items() if key not in apart and not made.expired())


class Written(TorchDispatchMode):
    """Bytes of the results of all operations but views."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            every = result if isinstance(result, tuple | list) else [result]
            self.bytes += sum(one.numel() * one.element_size() for one in every if isinstance(one, Tensor))
        return result


def left_by(forward: Callable[[], Iterable[Tensor]]) -> tuple[int, list[Tensor]]:
    """Bytes that a forward leaves besides its results, and the results."""
    with Operations() as operations:
        results = list(forward())
    return operations.bytes_left(results), results


class Peak(TorchDispatchMode):
    """The most bytes that are in use in the block, of memory that it or `before` made; without gradients of `weights`.

    A gradient counts until it is the weight's.
    """

    def __init__(self, before: Operations, weights: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.bytes = 0
        self._made = dict(before._made)
        self._weights = list(weights)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.is_view:
            return result
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor) and tensor.is_meta:
                storage = tensor.untyped_storage()
                self._made[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self._made = {key: made for key, made in self._made.items() if not made[0].expired()}
        apart = {one.grad.untyped_storage()._cdata for one in self._weights if one.grad is not None}
        self.bytes = max(self.bytes, sum(size for key, (_, size) in self._made.items() if key not in apart))
        return result
