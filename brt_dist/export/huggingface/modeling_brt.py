"""A Block-Recurrent Transformer (arXiv 2203.07852) in plain torch, exported by brt_dist.

A text is read in blocks of W tokens.  A token attends to the W tokens before it, and in a recurrent layer to S state
vectors, as they were when its block began; they are updated when the block is complete.  Between calls a
`BlockRecurrentCache` carries the state, and the keys and values of two blocks: its size does not grow with the text.

The whole model is in this one file, as in `transformers` itself: it travels with the weights, and its readers have
nothing else from brt_dist.

Shapes: b texts, n tokens, h heads, E head size, W window, S states, D width.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers import GenerationMixin, PreTrainedModel
from transformers.utils import ModelOutput

from .configuration_brt import BlockRecurrentConfig

EPSILON = 1e-6
BUCKETS, MAX_DISTANCE = 32, 128
ROTARY_BASE = 10_000.0


class BlockRecurrentCache:
    """What b texts left behind; each may be at a different position.

    Attributes:
        layers: of each layer, tensors (b, ...) of the block that each text is in.
        position: (b,) tokens of that block that were read.
        seen: tokens of `input_ids` that were read, with padding.
    """

    def __init__(self):
        self.layers, self.position, self.seen = [], None, 0

    def get_seq_length(self, layer_idx=0):
        return self.seen

    def reorder_cache(self, beam_idx):
        """Keep these texts, for beam search."""
        self.layers = [{name: value[beam_idx] for name, value in layer.items()} for layer in self.layers]
        self.position = self.position[beam_idx]
        return self


@dataclass
class BlockRecurrentOutput(ModelOutput):
    """loss: mean nats per label.  logits: (b, n, V).  cache: to pass to the next call."""

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    cache: BlockRecurrentCache | None = None


class RMSNorm(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        wide = x.float()
        scaled = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPSILON) * self.weight.float()
        return scaled.to(self.weight.dtype)


class HeadScale(nn.Module):
    def __init__(self, heads, kind):
        super().__init__()
        self.weight, self.absolute = nn.Parameter(torch.ones(heads)), kind == "absolute"

    def forward(self, x):
        weight = self.weight.float()[:, None, None]
        return x * (weight.abs() if self.absolute else weight)


class Table(nn.Module):
    """A bare parameter `weight`."""

    def __init__(self, *shape):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(shape))


class TokenAttention(nn.Module):
    """Attention of the tokens: to the tokens before them, and to states if `crosses`."""

    def __init__(self, config, settings, crosses):
        super().__init__()
        self.window, self.head_dim, self.kinds = config.window, config.head_dim, 3 + crosses
        self.kind_of_positions, size = settings["positions"], config.heads * config.head_dim
        self.norm = RMSNorm(config.width)
        self.projections = nn.Linear(config.width, self.kinds * size, bias=False)
        self.scale = HeadScale(config.heads, settings["attention_scale"])
        if crosses:
            self.state_scale = HeadScale(config.heads, settings["attention_scale"])
        if self.kind_of_positions == "t5":
            self.positions = Table(config.heads, BUCKETS)
        self.merge = nn.Linear((1 + crosses) * size, config.width, bias=False)

    def forward(self, x, block, places):
        """x (b, n, D) at `places` (b, n) of the block, whose keys and values are written -> (b, n, D)."""
        keys, values, queries, *others = split_heads(self.projections(self.norm(x)), self.kinds, self.head_dim)
        rows = torch.arange(len(x), device=x.device)[:, None]
        for name, new in (("keys", unit_length(keys).to(values.dtype)), ("values", values)):
            written = block[name].clone()
            written[rows, :, self.window + places] = new.transpose(1, 2)
            block[name] = written
        queries, seen = self.scale(unit_length(queries)), block["keys"]
        if self.kind_of_positions == "rotary":
            queries = rotated(queries, self.window + places[:, None, :])
            seen = rotated(seen, torch.arange(2 * self.window, device=x.device))
        attended = [attend(queries, seen, block["values"], self.visible(places))]
        if "state_keys" in block:
            state_queries = self.state_scale(unit_length(others[0]))
            attended.append(attend(state_queries, block["state_keys"], block["state_values"]))
        return self.merge(merge_heads(attended))

    def visible(self, places):
        """What is added to logits (b, h, n, 2W): T5's bias for the W keys before each place, -inf for the others."""
        keys = torch.arange(2 * self.window, device=places.device)
        distance = (self.window + places)[:, None, :, None] - keys  # (b, 1, n, 2W)
        hidden = (distance < 1) | (distance > self.window)
        bias = torch.zeros((), device=places.device)
        if self.kind_of_positions == "t5":
            table = self.scale(self.positions.weight.float()[:, None, :])[:, 0]  # (h, buckets)
            of = torch.tensor([bucket(max(d, 1)) for d in range(self.window + 1)], device=places.device)
            bias = table[:, of[distance[:, 0].clamp(0, self.window)]].transpose(0, 1)
        return torch.where(hidden, -math.inf, bias)


class FixedGate(nn.Module):
    def __init__(self, inputs, width):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, state, z, h):
        keep = torch.sigmoid(self.bias.float())
        return (state * keep + z * (1 - keep)).to(state.dtype)


class LSTMGate(nn.Module):
    def __init__(self, inputs, width):
        super().__init__()
        self.kernels = nn.Linear(inputs, 2 * width, bias=False)
        self.input_bias, self.forget_bias = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width))

    def forward(self, state, z, h):
        into, keep = self.kernels(h).float().chunk(2, -1)
        into = torch.sigmoid(into + self.input_bias.float() - 1)
        keep = torch.sigmoid(keep + self.forget_bias.float() + 1)
        return (state * keep + z * into).to(state.dtype)


class GatedUpdate(nn.Module):
    def __init__(self, inputs, width, gate):
        super().__init__()
        self.output = nn.Linear(inputs, width, bias=False)
        self.gate = (FixedGate if gate == "fixed" else LSTMGate)(inputs, width)

    def forward(self, state, h, tanh=False):
        z = self.output(h).float()
        return self.gate(state, torch.tanh(z) if tanh else z, h)


class Tail(nn.Module):
    """From attention to the new state: cell "skip", "single" or "dual"."""

    def __init__(self, settings, width, attended):
        super().__init__()
        self.cell, inner, gate = settings["cell"], settings["mlp_width"], settings["gate"]
        if self.cell == "single":
            self.hidden = nn.Linear(attended, inner, bias=False)
        if self.cell == "dual":
            self.attention_update = GatedUpdate(attended, width, gate)
            self.norm, self.hidden = RMSNorm(width), nn.Linear(width, inner, bias=False)
        self.update = GatedUpdate(attended if self.cell == "skip" else inner, width, gate)

    def forward(self, state, attended):
        if self.cell == "skip":
            return self.update(state, attended)
        if self.cell == "single":
            return self.update(state, torch.relu(self.hidden(attended)), tanh=True)
        state = self.attention_update(state, attended)
        return self.update(state, torch.relu(self.hidden(self.norm(state))))


class RecurrentCell(nn.Module):
    """S state vectors that attend to themselves and to the tokens of a block."""

    def __init__(self, config, settings):
        super().__init__()
        self.head_dim, self.in_float32 = config.head_dim, settings["state_dtype"] == "float32"
        size = config.heads * config.head_dim
        self.initial_state = nn.Parameter(torch.zeros(settings["states"], config.width))
        self.identities = nn.Parameter(torch.zeros(settings["states"], config.width))
        self.norm = RMSNorm(config.width)
        self.projections = nn.Linear(config.width, 4 * size, bias=False)
        self.scale = HeadScale(config.heads, settings["attention_scale"])
        self.token_scale = HeadScale(config.heads, settings["attention_scale"])
        self.tail = Tail(settings, config.width, 2 * size)

    def first(self, texts):
        state = self.initial_state.float() if self.in_float32 else self.initial_state
        return state.expand(texts, -1, -1)

    def enter(self, state):
        """What a block sees of the state (b, S, D) that enters it."""
        projected = self.projections(self.norm(state) + self.identities)
        keys, values, queries, token_queries = split_heads(projected, 4, self.head_dim)
        return {
            "state": state,
            "state_keys": unit_length(keys).to(values.dtype),
            "state_values": values,
            "state_queries": self.scale(unit_length(queries)),
            "state_token_queries": self.token_scale(unit_length(token_queries)),
        }

    def leave(self, block):
        """The state after a block."""
        own = attend(block["state_queries"], block["state_keys"], block["state_values"])
        read = attend(block["state_token_queries"], block["keys"], block["values"])
        return self.tail(block["state"], merge_heads([own, read]))


class FeedForward(nn.Module):
    def __init__(self, width, inner):
        super().__init__()
        self.norm = RMSNorm(width)
        self.hidden, self.output = nn.Linear(width, inner, bias=False), nn.Linear(inner, width, bias=False)

    def forward(self, x):
        return self.output(torch.relu(self.hidden(self.norm(x))))


class Layer(nn.Module):
    def __init__(self, config, index):
        super().__init__()
        settings, ffn = config.mixer_of(index), config.ffn_of(index)
        is_recurrent = settings["kind"] == "recurrent"
        self.shape = (config.heads, config.window, config.head_dim)
        self.tokens = TokenAttention(config, settings, is_recurrent or config.feedback)
        self.cell = RecurrentCell(config, settings) if is_recurrent else None
        self.mlp = FeedForward(config.width, ffn["width"])

    def first_block(self, texts):
        """The block that texts begin with."""
        zeros = self.tokens.merge.weight.new_zeros
        heads, window, size = self.shape
        block = {name: zeros(texts, heads, 2 * window, size) for name in ("keys", "values")}
        return block if self.cell is None else block | self.cell.enter(self.cell.first(texts))

    def next_block(self, block):
        """The block after a complete one."""
        window = self.shape[1]
        after = {
            name: torch.cat([block[name][:, :, window:], torch.zeros_like(block[name][:, :, window:])], 2)
            for name in ("keys", "values")
        }
        return after if self.cell is None else after | self.cell.enter(self.cell.leave(block))

    def forward(self, x, block, places):
        x = x + self.tokens(x, block, places)
        return x + self.mlp(x)


class BlockRecurrentForCausalLM(PreTrainedModel, GenerationMixin):
    config_class = BlockRecurrentConfig
    _no_split_modules = ["Layer"]  # noqa: RUF012 - transformers' own form
    _is_stateful = True

    def __init__(self, config):
        super().__init__(config)
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.layers = nn.ModuleList(Layer(config, index) for index in range(config.layers))
        self.final_norm = RMSNorm(config.width)
        divisor = config.width if config.logit_scale == "width" else config.vocab_size
        self.logit_factor = 1 / math.sqrt(divisor)
        self.post_init()

    def get_input_embeddings(self):
        return self.embedding

    def set_input_embeddings(self, value):
        self.embedding = value

    @classmethod
    def _supports_default_dynamic_cache(cls):
        return False

    def _init_weights(self, module):
        """Models are trained in brt_dist; a new one here begins with torch's own values."""

    def forward(
        self,
        input_ids,
        attention_mask=None,
        cache=None,
        past_key_values=None,
        labels=None,
        use_cache=None,
        logits_to_keep=0,
        return_dict=True,
        **others,
    ):
        """Read tokens.

        Args:
            input_ids: (b, n), each row one text from its beginning, or with a cache what comes next.
            attention_mask: (b, m) for all tokens so far, 0 for padding on the left.
            cache: from the previous call.
            labels: (b, n) as `input_ids`; -100 where there is none.
            logits_to_keep: return only the logits of this many last tokens; 0: of all.
        """
        cache = past_key_values if cache is None else cache
        texts, length = input_ids.shape
        padding = torch.zeros(texts, dtype=torch.long, device=input_ids.device)
        if attention_mask is not None and cache is None:
            is_text = attention_mask[:, :length].bool()
            padding = (~is_text).sum(1)
            if bool((is_text != (torch.arange(length, device=padding.device) >= padding[:, None])).any()):
                raise ValueError("padding must be on the left: set tokenizer.padding_side = 'left'")
        if cache is None:
            cache = BlockRecurrentCache()
            cache.layers = [layer.first_block(texts) for layer in self.layers]
            if self.config.feedback:
                self._feed_back(cache.layers)
            cache.position = torch.zeros(texts, dtype=torch.long, device=input_ids.device)
        logits = self._read(input_ids, padding, cache, int(logits_to_keep))
        loss = None
        if labels is not None:
            kept = labels[:, -logits.shape[1] :]
            loss = F.cross_entropy(logits[:, :-1].float().flatten(0, 1), kept[:, 1:].flatten())
        cache.seen += length
        found = BlockRecurrentOutput(loss=loss, logits=logits, cache=cache if use_cache is not False else None)
        return found if return_dict else found.to_tuple()

    def _read(self, input_ids, padding, cache, keep):
        """Logits (b, n, V), or of the last `keep` tokens; those of padding mean nothing."""
        texts, length = input_ids.shape
        keep, done, found = keep or length, padding.clone(), None
        while bool((done < length).any()):
            self._turn(cache, (cache.position == self.config.window) & (done < length))
            rows = (done < length).nonzero().flatten()
            position, first = cache.position[rows, None], done[rows, None]
            count = int(torch.minimum(self.config.window - position, length - first).min())
            steps = torch.arange(count, device=rows.device)
            columns = first + steps
            x = self.embedding(input_ids[rows[:, None], columns])
            for layer, block in zip(self.layers, cache.layers, strict=True):
                part = block if len(rows) == texts else {name: value[rows] for name, value in block.items()}
                x = layer(x, part, position + steps)
                if part is not block:
                    block |= {name: block[name].index_copy(0, rows, part[name]) for name in ("keys", "values")}
            scores = F.linear(self.final_norm(x) * self.logit_factor, self.embedding.weight)
            if found is None:
                found = scores.new_zeros(texts, keep, scores.shape[-1])
            places = columns - (length - keep)
            wanted = places >= 0
            found = found.index_put((rows[:, None].expand_as(places)[wanted], places[wanted]), scores[wanted])
            done, cache.position = done.clone(), cache.position.clone()
            done[rows] += count
            cache.position[rows] += count
        return found

    def _turn(self, cache, complete):
        """Begin the next block for texts whose block is complete."""
        if not bool(complete.any()):
            return
        after = [layer.next_block(block) for layer, block in zip(self.layers, cache.layers, strict=True)]
        if self.config.feedback:
            self._feed_back(after)
        for block, new in zip(cache.layers, after, strict=True):
            for name, value in new.items():
                block[name] = torch.where(complete.view(-1, *[1] * (value.dim() - 1)), value, block[name])
        cache.position = cache.position.masked_fill(complete, 0)

    def _feed_back(self, blocks):
        """Let layers without a state attend to the state of the last layer that has one."""
        last = next(block for block in reversed(blocks) if "state" in block)
        for block in blocks:
            if "state" not in block:
                block |= {name: last[name] for name in ("state_keys", "state_values")}

    def prepare_inputs_for_generation(
        self, input_ids, cache=None, past_key_values=None, attention_mask=None, use_cache=True, **others
    ):
        cache = past_key_values if cache is None else cache
        if cache is not None:
            input_ids = input_ids[:, cache.seen :]
        return {"input_ids": input_ids, "attention_mask": attention_mask, "cache": cache, "use_cache": use_cache}

    def _update_model_kwargs_for_generation(self, outputs, model_kwargs, *arguments, **others):
        updated = super()._update_model_kwargs_for_generation(outputs, model_kwargs, *arguments, **others)
        updated["cache"] = outputs.cache
        return updated


def attend(queries, keys, values, bias=None):
    """softmax(q·k + bias) v for (b, h, n, E) queries; there is no 1/sqrt(E), keys have unit length."""
    logits = (queries.to(keys.dtype) @ keys.transpose(-1, -2)).float()
    return (logits if bias is None else logits + bias).softmax(-1).to(values.dtype) @ values


def unit_length(x):
    wide = x.float()
    return wide * torch.rsqrt(wide.square().sum(-1, keepdim=True) + EPSILON)


def split_heads(projected, kinds, size):
    """(b, n, h*kinds*E) -> `kinds` tensors (b, h, n, E)."""
    return projected.unflatten(-1, (-1, kinds, size)).permute(3, 0, 2, 1, 4).unbind(0)


def merge_heads(attended):
    """(b, h, n, E) of each kind -> (b, n, h*kinds*E)."""
    return torch.stack(attended, -2).transpose(1, 2).flatten(2)


def bucket(distance):
    """T5's bucket of a distance: exact below 16, then logarithmic up to 128."""
    exact = BUCKETS // 2
    if distance < exact:
        return distance
    scaled = math.log(distance / exact) / math.log(MAX_DISTANCE / exact)
    return min(BUCKETS - 1, exact + int(scaled * (BUCKETS - exact)))


def rotated(x, positions):
    """Rotary positions: x (b, h, n, E) turned by `positions`, which broadcast to (b, h, n)."""
    size = x.shape[-1]
    rates = ROTARY_BASE ** -(torch.arange(0, size, 2, device=x.device).float() / size)
    angles = positions[..., None].float() * rates
    one, two = x.float().chunk(2, -1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([one * cos - two * sin, two * cos + one * sin], -1).to(x.dtype)
