"""Reading token by token with mixers whose memory can follow every token: sums and states, not caches of blocks."""

from typing import Any

import torch
from torch import Tensor, nn

from brt_dist.errors import ConfigError
from brt_dist.model.decoding import OpenBlock
from brt_dist.model.memory import Memory


class Stepping:
    """Runs the mixer on blocks of one token, so a token costs the same whatever was read before it.

    Args:
        mixer: takes the number of blocks from `starts`, whatever their length.
    """

    def __init__(self, mixer: nn.Module) -> None:
        self._mixer = mixer

    def open(self, memory: Memory, starts: Tensor, fed_back: Any = None) -> OpenBlock:
        if fed_back is not None:
            raise ConfigError("with model.feedback a mixer needs a decoder of its own, and this kind has none")
        opened = {f"opened.{name}": value for name, value in memory.items()}
        now = {f"now.{name}": value for name, value in memory.items()}
        return {**opened, **now, "starts": starts, "read": torch.zeros_like(starts, dtype=torch.int64)}

    def read_block(self, x: Tensor, block: OpenBlock) -> Tensor:
        block["inputs"] = x.transpose(0, 1).contiguous()
        block["read"] = torch.zeros_like(block["read"])  # only the next token shows how much of x is known
        block.update({f"now.{name}": value for name, value in _memory(block, "opened.").items()})
        return self._whole(block)[0]

    def read_token(self, x: Tensor, block: OpenBlock, position: Tensor) -> Tensor:
        streams = torch.arange(len(position), device=x.device)
        while bool((block["read"] < position).any()):  # after `read_block`
            at = block["read"].clamp(max=block["inputs"].shape[1] - 1)
            self._step(block["inputs"][streams, at].unsqueeze(0), block, block["read"] < position)
        if "inputs" in block:
            block["inputs"][streams, position] = x[0]
        return self._step(x, block, torch.ones_like(block["starts"]))

    def close(self, block: OpenBlock) -> Memory:
        now = _memory(block, "now.")
        behind = block["read"] == 0  # read only by `read_block`
        if not bool(behind.any()):
            return now
        after = self._whole(block)[1]
        return {name: _chosen(behind, after[name], value) for name, value in now.items()}

    def _whole(self, block: OpenBlock) -> tuple[Tensor, Memory]:
        starts = block["starts"].unsqueeze(1)
        mixed: tuple[Tensor, Memory] = self._mixer(
            block["inputs"].transpose(0, 1), _memory(block, "opened."), starts, None
        )
        return mixed

    def _step(self, x: Tensor, block: OpenBlock, which: Tensor) -> Tensor:
        """Read a token x (1, b, D) of the streams where `which` (b,) is true."""
        begins = block["starts"] & (block["read"] == 0)
        now = _memory(block, "now.")
        y, after = self._mixer(x, now, begins.unsqueeze(1), None)
        block.update({f"now.{name}": _chosen(which, after[name], value) for name, value in now.items()})
        block["read"] = block["read"] + which
        return y


def _memory(block: OpenBlock, prefix: str) -> Memory:
    return {name.removeprefix(prefix): value for name, value in block.items() if name.startswith(prefix)}


def _chosen(which: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return torch.where(which.view(-1, *[1] * (new.dim() - 1)), new, old)
