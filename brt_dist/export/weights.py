"""Weights to read: from a run, a checkpoint, an exported folder, or the reference.

All sources are verified before use, nothing in them is executed, and a tensor is read when it is requested.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from brt_dist.config.schema import ModelConfig
from brt_dist.errors import CheckpointError
from brt_dist.export.curve import CurvePoint
from brt_dist.parallel.pieces import Region

if TYPE_CHECKING:
    from brt_dist.model.parameters import LogicalParameter

_KIND = "weights/"


@dataclass(frozen=True)
class Weights:
    """All weights of a model, float32, by logical name.

    Attributes:
        where: what they were read from, for messages.
        model: the network; vocab_size is set.
        shapes: of each logical tensor.
        read: returns one of them, whole.
        facts: where they come from: step, tokens, evaluations, dataset, versions; as far as it is known.
        config: of the run that trained them, if one did.
        tokenizer: its file, if it is known.
        read_region: returns a region of one of them, and reads no more; None: it is cut from the whole.
        verify: compares a rank's share of the files with their digests, given the rank and the number of ranks; raises
            CheckpointError.  None: there is nothing to compare.
        curve: returns the loss curve up to this checkpoint, as far as it is known.
        origin: for weights of another architecture: what was taken, what is new and what differs, as a table.
    """

    where: str
    model: ModelConfig
    shapes: dict[str, tuple[int, ...]]
    read: Callable[[str], Tensor]
    facts: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] | None = None
    tokenizer: bytes | None = None
    read_region: Callable[[str, Region], Tensor] | None = None
    verify: Callable[[int, int], None] | None = None
    curve: Callable[[], Sequence[CurvePoint]] = tuple
    origin: str | None = None

    def part(self, name: str, region: Region) -> Tensor:
        """The elements of a region of the tensor `name`, (region.size,)."""
        if self.read_region is not None:
            return self.read_region(name, region)
        whole = self.read(name)
        return region.take(lambda slices: whole[slices])

    @classmethod
    def of(cls, model: ModelConfig, tensors: Mapping[str, Tensor], tokenizer: bytes | None = None) -> "Weights":
        """Weights that are in memory.

        Args:
            model: the network; vocab_size is set.
            tensors: all of its weights, whole, float32, by logical name.
            tokenizer: its file.
        """
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        return cls("memory", model, shapes, tensors.__getitem__, tokenizer=tokenizer)


def logical_tensors(model: ModelConfig) -> "dict[str, LogicalParameter]":
    """The network's parameters, by logical name.  Allocates nothing, however large it is."""
    from megatron.core import parallel_state

    from brt_dist.model.model import BlockRecurrentModel
    from brt_dist.model.parameters import logical_parameters
    from brt_dist.parallel.layout import single_process

    if parallel_state.model_parallel_is_initialized():
        with torch.device("meta"):
            return {parameter.name: parameter for parameter in logical_parameters(BlockRecurrentModel(model))}
    with single_process():
        return logical_tensors(model)


def logical_shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The shapes of the same."""
    return {name: tensor.shape for name, tensor in logical_tensors(model).items()}


def check_shapes(found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Check the names and shapes of tensors.

    Raises:
        CheckpointError: a tensor is missing, unknown or of a different shape; the message names the first.
    """
    for name in sorted(expected.keys() | found.keys()):
        if found.get(name) != expected.get(name):
            now, needed = found.get(name, "missing"), expected.get(name, "none")
            raise CheckpointError(f"{where}: tensor {name} is {now}, but the model needs {needed}")
