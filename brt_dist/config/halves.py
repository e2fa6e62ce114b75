"""What mixers and FFNs, the two halves of a layer, have in common.

A half is a section of the config that also declares what the rest of the library needs to know about its kind:
parameters, FLOPs, what tensor parallelism divides, which layouts it supports.  `build` makes the torch module.  The
file itself does not import torch, because the launcher, the rules and the plan read these declarations without it.
"""

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from brt_dist.config.local_segment import LocalSegment
from brt_dist.config.section import Section
from brt_dist.errors import ConfigError

if TYPE_CHECKING:
    from megatron.core import ModelParallelConfig
    from torch import nn

    from brt_dist.config.schema import Config, ModelConfig
    from brt_dist.model.reference_names import Permutation


@dataclass(frozen=True)
class Matrix:
    """Shape of a parameter, for the plan.

    Attributes:
        rows: size of the first dimension.
        columns: size of the second dimension; 1 for a vector.
        split: whether tensor parallelism splits it.
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
    """A kind of mixer or FFN: its config keys are fields, its other declarations are the methods below."""

    kind: str
    layers: tuple[int, ...] | None = Field(
        None,
        description="layers that use it; negative indices count from the end; unset: all that no other section names",
    )

    changeable: ClassVar[tuple[str, ...]] = ()
    """keys that may change on resume if `run.allow` names them; they change no shape or meaning of a saved tensor"""
    beside_weights: ClassVar[tuple[str, ...]] = ()
    """keys that may differ from those that initial weights were trained with"""
    backward_share: ClassVar[float] = 0.6
    """gradients and temporaries of its backward pass, as a share of what it keeps, unless the kind has a formula"""

    @abstractmethod
    def parameters(self, model: "ModelConfig") -> Iterator[Matrix]:
        """Every parameter of this half of a layer."""

    @abstractmethod
    def flops(self, model: "ModelConfig", executed: bool) -> float:
        """Forward FLOPs per token; a multiply-add of a matrix product counts as two.

        Args:
            model: the model that the layer belongs to.
            executed: also count those whose result is masked.
        """

    def attention_flops(self, model: "ModelConfig", executed: bool) -> float:
        """The part of `flops` that an attention kernel computes, which is slower than products of large matrices."""
        return 0.0

    @abstractmethod
    def activations(self, model: "ModelConfig", local: LocalSegment) -> int:
        """Bytes that a forward pass in training keeps for its backward pass on one rank, its input included.

        Formulas agree with counts on tensors without data (tests/scale/test_activations.py); small terms that do not
        grow with the number of tokens are left out.
        """

    def in_backward(self, model: "ModelConfig", local: LocalSegment) -> int:
        """Most bytes in use during its backward pass, besides what it keeps: gradients and temporaries.

        The gradient of its output is one of them.  Gradients of weights are planned separately, except where they are
        accumulated step by step.
        """
        temporary = max(round(self.backward_share * self.activations(model, local)), 2 * local.gathered(model.width))
        return local.hidden(model.width) + temporary

    def operations(self, model: "ModelConfig", segment: int) -> int:
        """About how many operations a device runs in a forward and its backward pass; each takes some minimum time.

        Args:
            model: the model that the layer belongs to.
            segment: tokens of a stream.
        """
        return 200

    @abstractmethod
    def build(self, model: "ModelConfig", index: int, parallel: "ModelParallelConfig") -> "nn.Module":
        """The torch module of layer `index` (from 0) on this rank, with uninitialised parameters."""

    def tensor_sizes(self, model: "ModelConfig", key: str) -> Mapping[str, int]:
        """Sizes that must be divisible by the tensor parallel size, by config key.

        Args:
            model: the model that the layer belongs to.
            key: key of this section, for example "model.mixers.recurrent".
        """
        return {}

    def sequence_sizes(self, model: "ModelConfig", key: str) -> Mapping[str, int]:
        """More such sizes under sequence parallel, besides the segment, by config key."""
        return {}

    def broken_rules(self, config: "Config", key: str) -> Iterable[str]:
        """A message for each other rule that this config or its layout breaks, with the nearest value that works."""
        return ()

    def summary(self, model: "ModelConfig") -> str:
        """Its settings in a few words, for tables."""
        settings = self.model_dump(mode="json", exclude={"kind", "layers"})
        return ", ".join(f"{name} {value}" for name, value in settings.items())

    def reference_names(self, model: "ModelConfig", layer: int) -> "Iterator[tuple[str, Permutation]]":
        """Each parameter's name, and how to assemble it from tensors of the reference (google-research/meliad).

        Raises:
            ConfigError: the reference does not have this kind.
        """
        raise ConfigError(
            f"the reference implementation does not have {self.kind}; nearest: `brt export --to safetensors`"
        )


def assigned(halves: Mapping[str, Half], layers: int) -> list[str | None]:
    """For each of `layers` layers, the name of the half that covers it: the first if there are two, None if none."""
    names: list[str | None] = [None] * layers
    for name, half in halves.items():
        for index in half.layers or ():
            if -layers <= index < layers and names[index] is None:
                names[index] = name
    rest = next((name for name, half in halves.items() if half.layers is None), None)
    return [name or rest for name in names]


def wrong_assignments(halves: Mapping[str, Half], layers: int, key: str) -> Iterator[str]:
    """A message for each mistake in the `layers` of the halves at `key` ("model.mixers")."""
    taken: dict[int, str] = {}
    for name, half in halves.items():
        given = half.layers or ()
        outside = [index for index in given if not -layers <= index < layers]
        if outside:
            nearest = [min(max(index, -layers), layers - 1) for index in outside]
            yield (
                f"{key}.{name}.layers contains {listed(outside)}, but with model.layers={layers} indices run from "
                f"{-layers} to {layers - 1}; nearest: {listed(nearest)}"
            )
            continue
        distinct = sorted({index % layers for index in given})
        if len(distinct) != len(given):
            every = sorted(index % layers for index in given)
            yield (
                f"{key}.{name}.layers={list(given)} lists a layer twice (layers layers {listed(every)} of {layers}); "
                f"nearest: {distinct}"
            )
        shared = [index for index in distinct if index in taken]
        if shared:
            yield (
                f"{key}.{name}.layers and {key}.{taken[shared[0]]}.layers both contain layer {listed(shared)}; "
                f"nearest: {key}.{name}.layers={[index for index in distinct if index not in taken]}"
            )
        taken |= {index: name for index in distinct}
    rest = [name for name, half in halves.items() if half.layers is None]
    if len(rest) > 1:
        yield f"{key}: {' and '.join(rest)} both leave `layers` unset; set it for all but one of them"
    if not rest and len(taken) < layers and not any(half.layers is None for half in halves.values()):
        free = [index for index in range(layers) if index not in taken]
        yield f"{key}: no entry covers layers {listed(free)}; nearest: leave `layers` of one of them unset, or add one"


def listed(numbers: Iterable[Any]) -> str:
    return ", ".join(str(number) for number in numbers)
