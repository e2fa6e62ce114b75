"""What a parameter is, independent of the layout: logical name, logical shape, split, initial values.

Each parameter carries this itself (:func:`declare`), as Megatron's do with `tensor_model_parallel` and
`partition_dim`.  So initialisation, checkpoint and export read the module tree and keep no list of their own.

Logical tensors are split over the tensor parallel ranks in equal contiguous parts of one dimension.  The vocabulary
is padded first, with rows of zeros that take no part in the model.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from megatron.core import parallel_state
from megatron.core.tensor_parallel.layers import set_tensor_model_parallel_attributes
from torch import Tensor, nn

from brt_dist.errors import CheckpointError
from brt_dist.model.boxes import Box
from brt_dist.model.initial_values import Initializer, constant, drawn, fan_in, normal, ones, uniform
from brt_dist.model.shapes import padded

__all__ = [
    "Initializer",
    "LogicalParameter",
    "constant",
    "declare",
    "drawn",
    "fan_in",
    "initialize",
    "load",
    "logical_parameters",
    "normal",
    "ones",
    "seeded_generator",
    "uniform",
]


def declare(
    parameter: nn.Parameter,
    initializer: Initializer,
    partition_dim: int | None = None,
    logical_size: int | None = None,
    multiple: int = 1,
    stacked: tuple[int, int] = (1, 1),
) -> None:
    """Declare what `parameter` is a part of.

    Args:
        partition_dim: dimension that is split over the tensor parallel ranks; none: every rank holds all of it.
        logical_size: size of that dimension without padding; none: the sum of the parts.
        multiple: the padded parts are multiples of this.
        stacked: (P, R): P matrices in one, alternating along the rows in runs of R rows.  The optimizer treats them
            as P parameters wherever it uses more than one element.
    """
    split = partition_dim is not None
    set_tensor_model_parallel_attributes(parameter, split, partition_dim if split else -1, 1)
    shape = list(parameter.shape)
    if partition_dim is not None:
        ranks = parallel_state.get_tensor_model_parallel_world_size()
        shape[partition_dim] = logical_size or shape[partition_dim] * ranks
    parameter.logical = _Logical(tuple(shape), partition_dim, multiple, stacked, initializer)  # type: ignore[attr-defined]


@dataclass(frozen=True)
class _Logical:
    shape: tuple[int, ...]
    partition_dim: int | None
    multiple: int
    stacked: tuple[int, int]
    initializer: Initializer


@dataclass(frozen=True)
class LogicalParameter(_Logical):
    """A parameter as the model knows it, and where this rank's part of it is."""

    name: str
    local: nn.Parameter

    @property
    def size(self) -> int:
        """Number of elements, without padding."""
        return math.prod(self.shape)

    def box(self, rank: int, ranks: int) -> Box:
        """Where that part lies in the logical tensor: a range in each dimension, without padding."""
        box = [(0, size) for size in self.shape]
        dim = self.partition_dim
        if dim is not None:
            size, step = self.shape[dim], padded(self.shape[dim], ranks, self.multiple) // ranks
            box[dim] = (min(rank * step, size), min((rank + 1) * step, size))
        return tuple(box)

    def initial_values(self, seed: int, box: Box, begin: int, end: int) -> Tensor:
        """Elements `begin` to `end` of a box of the logical tensor, as a run with this seed starts with them.

        Returns:
            (end - begin,), float32, on the CPU; the same whatever the layout.
        """
        return self.initializer.draw(f"parameter/{seed}/{self.name}", self.shape, box, begin, end)

    def part(self, full: Tensor, rank: int, ranks: int) -> Tensor:
        """The part of the logical tensor `full` that tensor parallel rank `rank` of `ranks` holds."""
        dim = self.partition_dim
        if dim is None:
            return full
        missing = padded(full.shape[dim], ranks, self.multiple) - full.shape[dim]
        if missing:
            rows = list(full.shape)
            rows[dim] = missing
            full = torch.cat([full, full.new_zeros(rows)], dim)
        return full.chunk(ranks, dim)[rank]

    def whole(self, parts: Sequence[Tensor]) -> Tensor:
        """The logical tensor, from the parts of all tensor parallel ranks in order."""
        dim = self.partition_dim
        return parts[0] if dim is None else torch.cat(list(parts), dim).narrow(dim, 0, self.shape[dim])


def logical_parameters(module: nn.Module, prefix: str = "") -> Iterator[LogicalParameter]:
    """All parameters of `module`, read from the module tree.

    Args:
        prefix: logical name of `module` itself: "" for the whole model, "layers.3", "embedding", "final_norm".
    """
    for name, parameter in _named(module, prefix):
        logical: _Logical = parameter.logical  # type: ignore[attr-defined]
        yield LogicalParameter(**vars(logical), name=name, local=parameter)


def _named(module: nn.Module, prefix: str) -> list[tuple[str, nn.Parameter]]:
    """Names and parameters in the order in which optimizers lay them out.

    A module may give its children other names (`logical_names`, "" for none of its own), and name children whose
    parameters come after everything else of the parent module (`laid_out_last`): both keep names and order, and so the
    bits of sums over parameters, as in runs of earlier versions.
    """
    found = [(_join(prefix, name), parameter) for name, parameter in module.named_parameters(recurse=False)]
    names: Mapping[str, str] = getattr(module, "logical_names", {})
    last: list[tuple[str, nn.Parameter]] = []
    for name, child in module.named_children():
        here = _join(prefix, names.get(name, name))
        postponed = tuple(f"{_join(here, late)}." for late in getattr(child, "laid_out_last", ()))
        for item in _named(child, here):
            (last if item[0].startswith(postponed) else found).append(item)
    return found + last


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix and name else prefix or name


def initialize(module: nn.Module, seed: int, prefix: str = "") -> None:
    """Set the parameters of `module` to their initial values, the same whatever the layout.

    Only what this tensor parallel rank holds is drawn.  Padding is zero.
    """
    rank = parallel_state.get_tensor_model_parallel_rank()
    ranks = parallel_state.get_tensor_model_parallel_world_size()
    with torch.no_grad():
        for parameter in logical_parameters(module, prefix):
            box = parameter.box(rank, ranks)
            sizes = [stop - start for start, stop in box]
            values = parameter.initial_values(seed, box, 0, math.prod(sizes)).view(sizes)
            parameter.local.zero_()
            parameter.local[tuple(slice(size) for size in sizes)] = values.to(parameter.local)


def load(module: nn.Module, tensors: Mapping[str, Tensor], prefix: str = "") -> None:
    """Set the parameters of `module` from logical tensors by logical name; the rank's parts are taken.

    Raises:
        CheckpointError: a tensor is missing or has another shape.
    """
    rank = parallel_state.get_tensor_model_parallel_rank()
    ranks = parallel_state.get_tensor_model_parallel_world_size()
    with torch.no_grad():
        for parameter in logical_parameters(module, prefix):
            full = tensors.get(parameter.name)
            if full is None or tuple(full.shape) != parameter.shape:
                found = "missing" if full is None else f"of shape {tuple(full.shape)}"
                raise CheckpointError(f"parameter {parameter.name} is {found}: expected shape {parameter.shape}")
            parameter.local.copy_(parameter.part(full, rank, ranks))


def seeded_generator(key: str, device: torch.device | str = "cpu") -> torch.Generator:
    """A random generator that depends on `key` only."""
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little") >> 1
    return torch.Generator(device).manual_seed(seed)
