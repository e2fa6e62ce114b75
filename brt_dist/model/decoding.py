"""Reading a block piece by piece, as generation does: the state of a block that is not complete.

A mixer reads a segment as whole blocks.  Generation has the tokens of a block one at a time, so it opens a block,
reads tokens into it, and closes it when all W are there; only then is memory updated, as in training.  A kind of mixer
may offer a faster way in `Mixer.decoder`; without one, the block is read again for each token (:class:`Rereading`),
which is right for any causal mixer and costs W times as much, but does not grow with the length of the document.

Every tensor of a block has the streams first, so rows can be picked and put back without knowing the kind.
"""

from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from brt_dist.errors import ConfigError
from brt_dist.model.memory import Memory

OpenBlock: TypeAlias = dict[str, Tensor]
"""By name (b, ...), what a mixer keeps of the block that b streams are in."""


class BlockDecoder(Protocol):
    """Reads one block of b streams.  Values of positions that were not read yet may be anything."""

    def open(self, memory: Memory, starts: Tensor, fed_back: Any = None) -> OpenBlock:
        """Begin a block.

        Args:
            memory: after the block before, (b, ...).
            starts: (b,) bool, whether a document starts with this block.
            fed_back: as for the mixer.
        """
        ...

    def read_block(self, x: Tensor, block: OpenBlock) -> Tensor:
        """Read the block from its first token: x (W, b, D), padded behind the tokens that are known -> (W, b, D)."""
        ...

    def read_token(self, x: Tensor, block: OpenBlock, position: Tensor) -> Tensor:
        """Read one more token of each stream: x (1, b, D), at `position` (b,) in the block -> (1, b, D)."""
        ...

    def close(self, block: OpenBlock) -> Memory:
        """The memory after a block whose W tokens were all read."""
        ...


class Rereading:
    """Keeps the mixer's input, and runs it on the whole block each time.

    Args:
        mixer: any causal mixer.
        window: tokens of a block [W].
    """

    def __init__(self, mixer: nn.Module, window: int) -> None:
        self._mixer, self._window = mixer, window

    def open(self, memory: Memory, starts: Tensor, fed_back: Any = None) -> OpenBlock:
        if fed_back is not None:
            raise ConfigError("with model.feedback a mixer needs a decoder of its own, and this kind has none")
        return {**{f"memory.{name}": value for name, value in memory.items()}, "starts": starts[:, None]}

    def read_block(self, x: Tensor, block: OpenBlock) -> Tensor:
        block["inputs"] = x.transpose(0, 1).contiguous()
        return self._run(block)[0]

    def read_token(self, x: Tensor, block: OpenBlock, position: Tensor) -> Tensor:
        streams = torch.arange(len(position), device=x.device)
        if "inputs" not in block:
            block["inputs"] = x.new_zeros(len(position), self._window, x.shape[2])
        block["inputs"][streams, position] = x[0]
        return self._run(block)[0][position, streams].unsqueeze(0)

    def close(self, block: OpenBlock) -> Memory:
        return self._run(block)[1]

    def _run(self, block: OpenBlock) -> tuple[Tensor, Memory]:
        memory = {name.removeprefix("memory."): value for name, value in block.items() if name.startswith("memory.")}
        mixed: tuple[Tensor, Memory] = self._mixer(block["inputs"].transpose(0, 1), memory, block["starts"], None)
        return mixed


def picked(values: dict[str, Tensor], streams: Sequence[int] | None) -> dict[str, Tensor]:
    """The values of some streams, copied; None: all, not copied."""
    if streams is None:
        return values
    return {name: value[list(streams)] for name, value in values.items()}


def put(values: dict[str, Tensor], streams: Sequence[int] | None, new: dict[str, Tensor], count: int) -> None:
    """Put the values of some streams back, in place; None: of all.

    Args:
        values: of all `count` streams; names that are missing are made, with zeros for the other streams.
        streams: whose values are new.
        new: their values.
        count: of all streams.
    """
    if streams is None:
        values.update(new)
        return
    for name, value in new.items():
        if name not in values:
            values[name] = value.new_zeros(count, *value.shape[1:])
        values[name][list(streams)] = value
