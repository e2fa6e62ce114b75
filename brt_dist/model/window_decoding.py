"""Window attention, with or without a recurrent state, read token by token."""

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from brt_dist.model.attention import Window, attend, merge_heads, split_heads
from brt_dist.model.decoding import OpenBlock
from brt_dist.model.memory import Memory
from brt_dist.model.norms import unit_length
from brt_dist.model.positions import rotated
from brt_dist.model.scales import HeadScale
from brt_dist.model.window_attention import ProjectedState

if TYPE_CHECKING:
    from brt_dist.model.recurrent_attention import RecurrentAttention
    from brt_dist.model.window_attention import WindowAttention

_STATE = ("state_keys", "state_values", "state_queries", "state_token_queries")


class WindowDecoder:
    """Keeps keys and values of the previous block and of this one, (b, h, 2W, E): a token costs W of each.

    Args:
        mixer: whose weights to use.
    """

    def __init__(self, mixer: "WindowAttention") -> None:
        self._tokens = mixer.tokens
        self._window = mixer.tokens.model.window

    def open(self, memory: Memory, starts: Tensor, fed_back: ProjectedState | None = None) -> OpenBlock:
        block = {}
        for name in ("keys", "values"):
            before = memory[name].transpose(1, 2).masked_fill(starts[:, None, None, None], 0.0)
            block[name] = torch.cat([before, torch.zeros_like(before)], 2)
        return block if fed_back is None else block | _seen(fed_back)

    def read_block(self, x: Tensor, block: OpenBlock) -> Tensor:
        heads = self._tokens.project(x, None)
        for name, new in (("keys", heads.keys), ("values", heads.values)):
            block[name][:, :, self._window :] = new[:, 0]
        attended = [self._tokens.to_tokens(heads, _window(block), None)]
        if "state_keys" in block:
            attended.append(
                self._tokens.to_states(heads, block["state_keys"].unsqueeze(1), block["state_values"].unsqueeze(1))
            )
        return self._tokens.output(attended)

    def read_token(self, x: Tensor, block: OpenBlock, position: Tensor) -> Tensor:
        tokens, window = self._tokens, self._window
        count = 3 if tokens.state_scale is None else 4
        keys, values, queries, *others = split_heads(tokens.projections(tokens.norm(x)), count, tokens.model.head_dim)
        streams = torch.arange(len(position), device=x.device)
        block["keys"][streams, :, window + position] = unit_length(keys, dtype=values.dtype)[:, :, 0]
        block["values"][streams, :, window + position] = values[:, :, 0]

        # a token sees the W before it, and not itself
        visible = position[:, None] + torch.arange(window, device=x.device)
        seen = {name: block[name][streams[:, None], :, visible].transpose(1, 2) for name in ("keys", "values")}
        queries, bias = tokens.scale.queries(queries, is_wide=True), None
        if tokens.settings.positions == "rotary":  # a product depends only on the distance
            queries, seen["keys"] = rotated(queries, window), rotated(seen["keys"])
        if tokens.positions is not None:
            bias = tokens.scale(tokens.positions())
        attended = [attend(queries, seen["keys"], seen["values"], bias)]
        if "state_keys" in block:
            to_states = cast(HeadScale, tokens.state_scale).queries(others[0])
            attended.append(attend(to_states, block["state_keys"], block["state_values"]))
        return cast(Tensor, tokens.merge(merge_heads(attended)))

    def close(self, block: OpenBlock) -> Memory:
        return {name: block[name][:, :, self._window :].transpose(1, 2).contiguous() for name in ("keys", "values")}


class RecurrentDecoder(WindowDecoder):
    """Also keeps the projections of the state that entered the block; the state is updated when the block is complete.

    Segments exist only in training: with `clear_state`, the state is cleared only where a document starts.
    """

    def __init__(self, mixer: "RecurrentAttention") -> None:
        super().__init__(mixer)
        self._cell = mixer.cell

    def open(self, memory: Memory, starts: Tensor, fed_back: ProjectedState | None = None) -> OpenBlock:
        entered: ProjectedState = fed_back or self._cell(memory["state"], starts[:, None])
        return super().open(memory, starts) | _seen(entered) | {"state": entered.state.transpose(0, 1)}

    def close(self, block: OpenBlock) -> Memory:
        entered = ProjectedState(block["state"].transpose(0, 1), *(block[name] for name in _STATE))
        no_start = torch.zeros(len(block["state"]), 1, dtype=torch.bool, device=block["state"].device)
        scanned = self._cell(block["state"], no_start, _window(block), entered)
        return super().close(block) | {"state": scanned.state}


def _seen(entered: ProjectedState) -> OpenBlock:
    return dict(zip(_STATE, entered[1:], strict=True))


def _window(block: OpenBlock) -> Window:
    return Window(block["keys"].unsqueeze(1), block["values"].unsqueeze(1))
