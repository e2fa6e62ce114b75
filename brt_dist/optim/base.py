"""What an optimizer declares: its config keys, its state for a parameter, and the ZeRO stages that it supports.

An optimizer is a section of the config with these declarations.  Rules, plan, checkpoints and the engine use them
instead of knowing optimizers by name, so one file and one line in `kinds.py` add an optimizer.  The file does not
import torch, because the launcher and the plan read it without torch.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat

from brt_dist.config.section import Section
from brt_dist.model.shapes import padded

if TYPE_CHECKING:
    import torch
    import torch.distributed as dist

    from brt_dist.model.parameters import LogicalParameter

_ITEMSIZE = 4  # state is float32


@dataclass(frozen=True)
class LocalMatrix:
    """What a tensor parallel rank holds of a parameter, before ZeRO.

    Attributes:
        shape: of the local tensor, (rows, columns) or (n,), including padding.
        split: dimension that tensor parallelism splits; None: every rank has the whole parameter.
        tensor_parallel: tensor parallel size.
        logical_rows: rows of the whole parameter, without padding.
        stacked: (P, E): along the rows, P logical matrices alternate in runs of E rows.  Each has its own statistics,
            as if it were a separate parameter.
    """

    shape: tuple[int, ...]
    split: int | None
    tensor_parallel: int
    logical_rows: int
    stacked: tuple[int, int] = (1, 1)

    @classmethod
    def of(cls, parameter: "LogicalParameter", tensor_parallel: int) -> "LocalMatrix":
        """The local matrix of a model's parameter, on any of `tensor_parallel` ranks."""
        shape, dim = list(parameter.shape), parameter.partition_dim
        if dim is not None:
            shape[dim] = padded(shape[dim], tensor_parallel, parameter.multiple) // tensor_parallel
        return cls(tuple(shape), dim, tensor_parallel, parameter.shape[0], parameter.stacked)

    @property
    def rows(self) -> int:
        return self.shape[0]

    @property
    def columns(self) -> int:
        return self.shape[1] if len(self.shape) > 1 else 1

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def logical_columns(self) -> int:
        return self.columns * (self.tensor_parallel if self.split == 1 else 1)

    @property
    def rows_per_matrix(self) -> int:
        return self.logical_rows // self.stacked[0]

    @property
    def smallest_side(self) -> int:
        """The shorter side of each logical matrix; 1 for a vector."""
        return min(self.rows_per_matrix, self.logical_columns)


@dataclass(frozen=True)
class StateField:
    """One field of an optimizer's state for a parameter, in float32.

    Without a `shape`, it is laid out like the parameter: tensor parallelism and ZeRO split it in the same places.  With
    one, only tensor parallelism splits it, and all data parallel ranks hold the same values.

    Attributes:
        name: in checkpoints it is `optimizer/PARAMETER/NAME`.
        shape: of the whole field; None: that of the parameter.
        local: shape of what a tensor parallel rank holds of `shape`, including padding.
        split: dimension of `shape` that tensor parallelism splits; None: every rank has all of it.
        is_apart: whether each parameter has its own tensor (always so with a `shape`), under the key `NAME.I` of the
            optimizer's state, where I is the parameter's index on this rank.  Otherwise there is one tensor under the
            key `NAME` for each tensor that the optimizer steps, with the same shape.
    """

    name: str
    shape: tuple[int, ...] | None = None
    local: tuple[int, ...] = ()
    split: int | None = None
    is_apart: bool = False


@dataclass(frozen=True)
class Sharding:
    """How the parameters of this rank are split, and which ranks hold the rest.

    Attributes:
        tensor: tensor parallel size.
        tensor_rank: of this rank.
        is_flat: whether ZeRO concatenates the parameters into one flat tensor and splits it into equal ranges.
        shards: number of those ranges; 1 without ZeRO.
        shard: index of this rank's range.
        group: process group of all ranks that hold them: the tensor parallel ranks, with ZeRO of all ranges.
    """

    tensor: int
    tensor_rank: int
    is_flat: bool
    shards: int
    shard: int
    group: "dist.ProcessGroup"


class OptimizerKind(Section, ABC):
    """A kind of optimizer.  These keys are common to all; a kind adds its own as fields.

    DeepSpeed steps what `build` returns.  Its state follows two conventions: `state[tensor]["step"]` is the number of
    updates so far, a float32 tensor on the host, and the other keys are those of `state_fields`.
    """

    name: str
    learning_rate: PositiveFloat = Field(1e-3, description="peak learning rate, reached at the end of warm-up")
    schedule: Literal["constant", "rsqrt", "cosine"] = Field(
        "cosine", description="learning-rate schedule after warm-up"
    )
    warmup_steps: NonNegativeInt = Field(1000, description="steps of linear warm-up")
    final_ratio: NonNegativeFloat = Field(
        0.1, le=1.0, description="schedule=cosine: final learning rate as a fraction of the peak"
    )
    clip_norm: PositiveFloat | None = Field(1.0, description="clip gradients to this global norm; unset: no clipping")

    is_elementwise: ClassVar[bool] = False
    """whether each element's update depends only on that element, on the host as well, and in any grouping"""
    refused_zero_stages: ClassVar[Mapping[int, str]] = {}
    """ZeRO stages that it does not support, each with the reason, as the end of a sentence"""

    def broken_rules(self) -> Iterator[str]:
        """A message for each rule that its values break together, with the nearest values that work."""
        yield from ()

    @abstractmethod
    def state_fields(self, part: LocalMatrix) -> tuple[StateField, ...]:
        """Its state for a parameter, besides the number of updates."""

    def state_bytes(self, parts: Sequence[LocalMatrix], shards: int) -> int:
        """Bytes of its state on a rank that holds `parts`, if ZeRO splits each into `shards`; for the plan."""
        cut = whole = 0
        for part in parts:
            for field in self.state_fields(part):
                if field.shape is None:
                    cut += part.numel
                else:
                    whole += math.prod(field.local)
        return _ITEMSIZE * (cut // shards + whole)

    def in_update(self, at_once: int, largest: int, is_fused: bool) -> int:
        """Elements of the float32 temporaries of an update, at most.

        Args:
            at_once: elements that it may step at once: a group of parameters, or ZeRO's flat range of one.
            largest: elements of the largest parameter.
            is_fused: whether torch's own optimizers need none.
        """
        return at_once

    @abstractmethod
    def build(self, parameters: "Sequence[LogicalParameter]", sharding: Sharding) -> "torch.optim.Optimizer":
        """Build the optimizer of this rank, which DeepSpeed wraps.  The learning rate is set before each step.

        Args:
            parameters: those of this rank, in the same order on all ranks of a pipeline stage.
            sharding: how they are split.
        """
