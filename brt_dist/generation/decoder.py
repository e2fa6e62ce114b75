"""Reads documents of any length token by token and returns the logits of the next token.

Time and memory per token do not depend on how many were read before it: a stream keeps the memory after its last
complete block, and the block that it is in.
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from brt_dist.errors import CheckpointError, DataError
from brt_dist.model.decoding import OpenBlock, picked, put
from brt_dist.model.layers import Layer
from brt_dist.model.memory import Memory
from brt_dist.model.model import BlockRecurrentModel, full_logits


class Decoder:
    """Streams that are read independently of each other; each begins with a document.

    Args:
        model: in evaluation mode, on one process.
        streams: how many [b].

    Attributes:
        streams: how many [b].
        read: (b,) tokens that each stream has read.
    """

    def __init__(self, model: BlockRecurrentModel, streams: int) -> None:
        self._model, self.streams, self._window = model, streams, model.config.window
        self._layers = [cast(Layer, layer) for layer in model.layers]
        self._decoders = [
            model.config.mixer_of(layer.index).decoder(layer.mixer, model.config) for layer in self._layers
        ]
        self._memory: list[Memory] = model.blank_memory(streams)
        self._blocks: list[OpenBlock] = [{} for _ in self._layers]
        self._tokens: list[list[int]] = [[] for _ in range(streams)]  # of the block that each stream is in
        self._is_open = [False] * streams
        self.read = [0] * streams

    @property
    def device(self) -> torch.device:
        return next(self._model.parameters()).device

    @torch.no_grad()
    def feed(self, tokens: Mapping[int, Sequence[int]]) -> Tensor:
        """Read more tokens.

        Args:
            tokens: by stream, one or more.

        Returns:
            (k, V) logits of the token after the last, for each stream in `tokens`, in its order.

        Raises:
            DataError: a stream is given no token, or one outside the vocabulary.
        """
        left = {stream: list(given) for stream, given in tokens.items()}
        size = self._model.config.vocab_size or 0
        for stream, given in left.items():
            if not given or not all(0 <= token < size for token in given):
                raise DataError(f"stream {stream}: expected one or more tokens from 0 to {size - 1}, got {given[:8]}")
        found: dict[int, Tensor] = {}
        while left:
            self._open([stream for stream in left if not self._is_open[stream]])
            several = [stream for stream, given in left.items() if len(given) > 1]
            last = self._read_block(several, left) if several else self._read_token(list(left), left)
            for place, stream in enumerate(several or list(left)):
                self._is_open[stream] = len(self._tokens[stream]) < self._window
                if not left[stream]:
                    found[stream] = last[place]
                    del left[stream]
        return torch.stack([found[stream] for stream in tokens])

    def carried_bytes(self) -> int:
        """Bytes of all that is kept of what was read; no kind of mixer keeps more for longer documents."""
        kept = [value for fields in (*self._memory, *self._blocks) for value in fields.values()]
        return sum(value.numel() * value.element_size() for value in kept)

    def copied(self, streams: Sequence[int]) -> "Decoder":
        """A decoder whose streams begin as copies of these, for several continuations of one text."""
        made = Decoder(self._model, len(streams))
        made.read = [self.read[stream] for stream in streams]
        made._take(
            [_copied(memory, streams) for memory in self._memory],
            [_copied(block, streams) for block in self._blocks],
            [list(self._tokens[stream]) for stream in streams],
            [self._is_open[stream] for stream in streams],
        )
        return made

    def _take(
        self, memory: list[Memory], blocks: list[OpenBlock], tokens: list[list[int]], is_open: list[bool]
    ) -> None:
        self._memory, self._blocks, self._tokens, self._is_open = memory, blocks, tokens, is_open

    def reset(self, stream: int) -> None:
        """Forget what a stream has read: it begins with a document again."""
        for memory in self._memory:
            for value in memory.values():
                value[stream] = 0
        self._tokens[stream], self._is_open[stream], self.read[stream] = [], False, 0

    def state(self, stream: int) -> tuple[dict[str, Tensor], list[int]]:
        """All that a stream carries: memory by name `layers.I.FIELD` (1, ...), and the tokens of its open block."""
        named = {
            f"layers.{index}.{name}": value[stream : stream + 1].clone()
            for index, memory in enumerate(self._memory)
            for name, value in memory.items()
        }
        return named, list(self._tokens[stream])

    def restore(self, stream: int, memory: Mapping[str, Tensor], tokens: Sequence[int], read: int) -> None:
        """Continue where :meth:`state` was taken.

        Args:
            stream: to overwrite.
            memory: as returned by `state`.
            tokens: of the open block.
            read: tokens that were read in all.

        Raises:
            CheckpointError: the memory is not this model's.
        """
        expected = {
            f"layers.{index}.{name}": tuple(value.shape[1:])
            for index, fields in enumerate(self._memory)
            for name, value in fields.items()
        }
        given = {name: tuple(value.shape[1:]) for name, value in memory.items()}
        if given != expected:
            raise CheckpointError(
                f"the memory belongs to another model: it has {given}, but this model carries {expected}"
            )
        if not len(tokens) <= min(read, self._window) or (read - len(tokens)) % self._window:
            raise CheckpointError(f"the memory contradicts itself: {len(tokens)} of {read} tokens in an open block")
        for index, fields in enumerate(self._memory):
            for name, value in fields.items():
                value[stream] = memory[f"layers.{index}.{name}"][0].to(value)
        self._tokens[stream], self._is_open[stream], self.read[stream] = [], False, read - len(tokens)
        if tokens:
            self.feed({stream: list(tokens)})

    # ---- one block -------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _open(self, streams: Sequence[int]) -> None:
        """Begin the next block of these streams, after closing the one that they have completed."""
        if not streams:
            return
        rows = self._rows(streams)
        complete = [stream for stream in streams if self._tokens[stream]]
        if complete:
            at = self._rows(complete)
            for decoder, block, memory in zip(self._decoders, self._blocks, self._memory, strict=True):
                put(memory, at, decoder.close(picked(block, at)), self.streams)
        starts = torch.tensor([self.read[stream] == 0 for stream in streams], device=self.device)
        memories = [picked(memory, rows) for memory in self._memory]
        fed_back = self._fed_back(memories, starts)
        for index, decoder in enumerate(self._decoders):
            put(self._blocks[index], rows, decoder.open(memories[index], starts, fed_back[index]), self.streams)
        for stream in streams:
            self._tokens[stream], self._is_open[stream] = [], True

    def _fed_back(self, memories: Sequence[Memory], starts: Tensor) -> list[Any]:
        """What each layer attends to with `model.feedback`: its own state, or that of the last layer that has one."""
        config = self._model.config
        if not config.feedback:
            return [None] * len(memories)
        own = {
            index: self._mixer(index).enter(memories[index], starts[:, None], 0) for index in config.feeding_layers()
        }
        last = own[max(own)]
        return [own.get(index, last) for index in range(len(memories))]

    def _read_block(self, streams: Sequence[int], left: dict[int, list[int]]) -> Tensor:
        """Read the open block from its beginning, as far as there are tokens: the fastest way for two or more."""
        rows = self._rows(streams)
        ids = torch.zeros(len(streams), self._window, dtype=torch.int64)
        for place, stream in enumerate(streams):
            room = self._window - len(self._tokens[stream])
            self._tokens[stream] += left[stream][:room]
            self.read[stream] += len(left[stream][:room])
            del left[stream][:room]
            ids[place, : len(self._tokens[stream])] = torch.tensor(self._tokens[stream])
        x = self._model.embedding(ids.to(self.device))
        for layer, decoder, block in zip(self._layers, self._decoders, self._blocks, strict=True):
            one = picked(block, rows)
            x = x + decoder.read_block(x, one)
            x = x + layer.ffn(x, None)
            put(block, rows, one, self.streams)
        last = torch.tensor([len(self._tokens[stream]) - 1 for stream in streams], device=self.device)
        return self._logits(x[last, torch.arange(len(streams), device=self.device)].unsqueeze(0))

    def _read_token(self, streams: Sequence[int], left: dict[int, list[int]]) -> Tensor:
        rows = self._rows(streams)
        position = torch.tensor([len(self._tokens[stream]) for stream in streams], device=self.device)
        ids = [left[stream].pop() for stream in streams]
        for stream, token in zip(streams, ids, strict=True):
            self._tokens[stream].append(token)
            self.read[stream] += 1
        x = self._model.embedding(torch.tensor(ids, device=self.device)[:, None])
        for layer, decoder, block in zip(self._layers, self._decoders, self._blocks, strict=True):
            one = picked(block, rows)
            x = x + decoder.read_token(x, one, position)
            x = x + layer.ffn(x, None)
            put(block, rows, one, self.streams)
        return self._logits(x)

    def _logits(self, x: Tensor) -> Tensor:
        """(1, k, D) -> (k, V)."""
        scores = self._model.embedding.logits(self._model.final_norm(x))
        return full_logits(scores, self._model.config.vocab_size or 0)[:, 0]

    def _mixer(self, index: int) -> Any:
        return self._layers[index].mixer

    def _rows(self, streams: Sequence[int]) -> Sequence[int] | None:
        """For `picked` and `put`: None for all streams in order, which avoids copies."""
        return None if list(streams) == list(range(self.streams)) else streams


def _copied(values: dict[str, Tensor], streams: Sequence[int]) -> dict[str, Tensor]:
    return {name: value[list(streams)].clone() for name, value in values.items()}
