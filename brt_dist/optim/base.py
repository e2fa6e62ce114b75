"""What an optimizer declares: its keys in the config, what it remembers of a parameter, and where it works.

An optimizer is a section of the config with these declarations.  Rules, plan, checkpoints and the engine read them, so
none of those knows an optimizer by name, and one file with one line in `kinds.py` adds one.  The file imports no torch,
as the launcher and the plan read it in processes that have no use for it.
"""

import math
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
    """What a rank of the tensor parallel axis holds of a parameter, before ZeRO.

    Attributes:
        shape: of the local tensor, (rows, columns) or (n,), padding included.
        split: dimension that the tensor parallel ranks share; None: each has all of it.
        tensor_parallel: number of those ranks.
        logical_rows: rows of the whole parameter without padding.
        stacked: (P, E): along the rows, P logical matrices alternate in runs of E rows; they have statistics of their
            own, as if they were separate parameters.
    """

    shape: tuple[int, ...]
    split: int | None
    tensor_parallel: int
    logical_rows: int
    stacked: tuple[int, int] = (1, 1)

    @classmethod
    def of(cls, parameter: "LogicalParameter", tensor_parallel: int) -> "LocalMatrix":
        """That of a model's parameter, on any of `tensor_parallel` ranks."""
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
        """Of each logical matrix; 1 for a vector."""
        return min(self.rows_per_matrix, self.logical_columns)


@dataclass(frozen=True)
class StateField:
    """One thing that an optimizer remembers of a parameter, in float32.

    Without a `shape` it is laid out as the parameter: tensor parallelism and ZeRO cut it where they cut the parameter.
    With one, only tensor parallelism cuts it, and all data parallel ranks hold the same.

    Attributes:
        name: checkpoints have it as `optimizer/PARAMETER/NAME`.
        shape: of the whole field; None: that of the parameter.
        local: what a tensor parallel rank holds of `shape`, padding included.
        split: dimension of `shape` that the tensor parallel ranks share; None: each has all of it.
        is_apart: held in a tensor of its own for each parameter (always so with a `shape`), under the key `NAME.I` of
            the optimizer's state, I being the parameter's number on this rank.  Otherwise under the key `NAME`, one
            tensor beside each that the optimizer steps, of the same shape.
    """

    name: str
    shape: tuple[int, ...] | None = None
    local: tuple[int, ...] = ()
    split: int | None = None
    is_apart: bool = False


@dataclass(frozen=True)
class Sharding:
    """How the parameters of this rank are cut and who has the other parts; what `build` is told of the layout.

    Attributes:
        tensor: number of tensor parallel ranks, and `tensor_group`, their process group.
        is_flat: ZeRO lays the parameters end to end in one flat tensor and cuts it in equal ranges.
        shards: number of those ranges, 1 without ZeRO; `shard`, which of them is here; `data_group`, the process group
            of the ranks that hold them.
    """

    tensor: int
    tensor_group: "dist.ProcessGroup"
    is_flat: bool
    shards: int
    shard: int
    data_group: "dist.ProcessGroup"


class OptimizerKind(Section):
    """A kind of optimizer.  These keys are common to all; a kind adds its own as fields.

    What `build` returns is stepped by DeepSpeed and keeps its state by two conventions: `state[tensor]["step"]` is the
    number of updates done, as a float32 tensor on the host, and the other keys are those of `state_fields`.
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

    refused_zero_stages: ClassVar[Mapping[int, str]] = {}
    """ZeRO stages that it cannot work with, each with the reason, as the end of a sentence"""

    def broken_rules(self) -> Iterator[str]:
        """What is wrong with its values taken together, each with the nearest that works."""
        yield from ()

    def state_fields(self, part: LocalMatrix) -> tuple[StateField, ...]:
        """What it remembers of a parameter, besides the number of updates."""
        raise NotImplementedError

    def state_bytes(self, parts: Sequence[LocalMatrix], shards: int) -> int:
        """Bytes of its state on a rank that holds `parts`, where ZeRO cuts each in `shards`; the plan counts them."""
        cut = whole = 0
        for part in parts:
            for field in self.state_fields(part):
                if field.shape is None:
                    cut += part.numel
                else:
                    whole += math.prod(field.local)
        return _ITEMSIZE * (cut // shards + whole)

    def build(self, parameters: "Sequence[LogicalParameter]", sharding: Sharding) -> "torch.optim.Optimizer":
        """The optimizer of this rank, to be wrapped by DeepSpeed.  The learning rate is set before each step.

        Args:
            parameters: those of this rank, in the same order on all ranks that share a pipeline stage.
        """
        raise NotImplementedError
