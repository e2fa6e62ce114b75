"""What the two halves of a layer have in common: a mixer mixes tokens, an FFN works on each token.

A half is a section of the config, and declares what everybody else has to know about its kind: parameters, FLOPs, what
tensor parallelism divides, which layouts it supports.  It makes the torch module with `build`.  Its file imports no
torch, as the launcher, the rules and the plan read these declarations in processes that have no use for it.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from brt_dist.config.section import Section
from brt_dist.errors import ConfigError

if TYPE_CHECKING:
    from megatron.core import ModelParallelConfig
    from torch import nn

    from brt_dist.config.schema import Config, ModelConfig
    from brt_dist.model.reference_names import Permutation


@dataclass(frozen=True)
class Matrix:
    """A parameter of rows x columns, as the plan counts it.

    Attributes:
        split: whether the tensor parallel ranks share it.
        matrices: how many matrices are stacked along its rows.
    """

    rows: int
    columns: int = 1
    split: bool = False
    matrices: int = 1

    @property
    def size(self) -> int:
        return self.rows * self.columns


class Half(Section):
    """A kind of mixer or FFN: its keys are fields, the rest of what it declares are the methods below."""

    kind: str
    layers: tuple[int, ...] | None = Field(
        None, description="layers that have it, negative indices count from the end; unset: all that no other one names"
    )

    changeable: ClassVar[tuple[str, ...]] = ()
    """keys that may change on resume when `run.allow` names them: shapes and the meaning of saved tensors stay"""
    beside_weights: ClassVar[tuple[str, ...]] = ()
    """keys that say nothing about weights: a run may start from weights that were trained with other values"""

    def parameters(self, model: "ModelConfig") -> Iterator[Matrix]:
        """Every parameter of a layer's half."""
        raise NotImplementedError

    def flops(self, model: "ModelConfig", executed: bool) -> float:
        """Floating point operations of a token in the forward pass, two for each multiplication of a matrix product.

        Args:
            executed: count also those that are masked away afterwards.
        """
        raise NotImplementedError

    def build(self, model: "ModelConfig", index: int, parallel: "ModelParallelConfig") -> "nn.Module":
        """The torch module of layer `index` (from 0) on this rank; its values are not set yet."""
        raise NotImplementedError

    def tensor_sizes(self, model: "ModelConfig", key: str) -> Mapping[str, int]:
        """Sizes that must be multiples of the number of tensor parallel ranks, by config key.

        Args:
            key: where this section stands, for example "model.mixers.recurrent".
        """
        return {}

    def sequence_sizes(self, model: "ModelConfig", key: str) -> Mapping[str, int]:
        """As `tensor_sizes`, under sequence parallel; the segment itself need not be named."""
        return {}

    def broken_rules(self, config: "Config", key: str) -> Iterable[str]:
        """What else is wrong with it in this config, layout included, with the nearest that works; `key` as above."""
        return ()

    def summary(self, model: "ModelConfig") -> str:
        """Its settings in a few words, for tables that people read."""
        settings = self.model_dump(mode="json", exclude={"kind", "layers"})
        return ", ".join(f"{name} {value}" for name, value in settings.items())

    def reference_names(self, model: "ModelConfig", layer: int) -> "Iterator[tuple[str, Permutation]]":
        """Name of each parameter, and how it is made of tensors of the reference (google-research/meliad).

        Raises:
            ConfigError: the reference has no such kind.
        """
        raise ConfigError(f"the reference implementation has no {self.kind}; nearest: `brt export --to safetensors`")


def assigned(halves: Mapping[str, Half], layers: int) -> list[str | None]:
    """The name of the half that each of `layers` layers has; None where no half takes it, the first where two do."""
    names: list[str | None] = [None] * layers
    for name, half in halves.items():
        for index in half.layers or ():
            if -layers <= index < layers and names[index] is None:
                names[index] = name
    rest = next((name for name, half in halves.items() if half.layers is None), None)
    return [name or rest for name in names]


def wrong_assignments(halves: Mapping[str, Half], layers: int, key: str) -> Iterator[str]:
    """What is wrong with the layers that the halves at `key` ("model.mixers") name."""
    taken: dict[int, str] = {}
    for name, half in halves.items():
        given = half.layers or ()
        outside = [index for index in given if not -layers <= index < layers]
        if outside:
            nearest = [min(max(index, -layers), layers - 1) for index in outside]
            yield (
                f"{key}.{name}.layers has {listed(outside)}, but with model.layers={layers} indices go from {-layers} "
                f"to {layers - 1}; nearest: {listed(nearest)}"
            )
            continue
        distinct = sorted({index % layers for index in given})
        if len(distinct) != len(given):
            every = sorted(index % layers for index in given)
            yield (
                f"{key}.{name}.layers={list(given)} names a layer twice (they are layers {listed(every)} of {layers}); "
                f"nearest: {distinct}"
            )
        shared = [index for index in distinct if index in taken]
        if shared:
            yield (
                f"{key}.{name}.layers and {key}.{taken[shared[0]]}.layers both name layer {listed(shared)}; "
                f"nearest: {key}.{name}.layers={[index for index in distinct if index not in taken]}"
            )
        taken |= {index: name for index in distinct}
    rest = [name for name, half in halves.items() if half.layers is None]
    if len(rest) > 1:
        yield f"{key}: {' and '.join(rest)} both take all layers that no other names; give all but one of them `layers`"
    if not rest and len(taken) < layers and not any(half.layers is None for half in halves.values()):
        free = [index for index in range(layers) if index not in taken]
        yield f"{key}: layers {listed(free)} have none; nearest: leave `layers` of one of them unset, or add another"


def listed(numbers: Iterable[Any]) -> str:
    return ", ".join(str(number) for number in numbers)
