"""The network written as plainly as it can be: the oracle that the fast path is tested against.

One stream at a time, block after block through the whole stack, nothing fused, nothing split, in the type of the
weights (tests use float64).  Weights have the names and shapes of the reference implementation (see
`brt_dist.export.reference`), so that a mistake in our own order of heads cannot hide in both.  Equations: arXiv
2203.07852 section 3, with the details of the published code.
"""

import math
from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor

from brt_dist.config.schema import ModelConfig
from brt_dist.model.memory import Memory
from brt_dist.model.mixers.recurrent import RecurrentMixer
from brt_dist.model.mixers.window import AttentionMixer

Weights = Mapping[str, Tensor]


def read_segment(
    weights: Weights, config: ModelConfig, tokens: Tensor, memory: Sequence[Memory], starts: Tensor
) -> tuple[Tensor, list[Memory]]:
    """Logits (b, N, V) and the memory after the segment, attached to the graph.

    Args:
        tokens: (b, N).
        memory: of each layer: keys and values (b, W, H, E), and of a recurrent one the state (b, S, D).
        starts: (b, N/W) bool.
    """
    logits, after = [], []
    for stream in range(len(tokens)):
        before = [_row(layer, stream) for layer in memory]
        read, kept = _read_stream(weights, config, tokens[stream], before, starts[stream].tolist())
        logits.append(read)
        after.append(kept)
    return torch.stack(logits), [_stack(rows) for rows in zip(*after, strict=True)]


def _read_stream(
    weights: Weights, config: ModelConfig, tokens: Tensor, memory: list[Memory], starts: list[bool]
) -> tuple[Tensor, list[Memory]]:
    """One stream: tokens (N,) -> logits (N, V)."""
    table, logits = weights["embed/embedding"], []
    for block, block_starts in enumerate(starts):
        x = table[tokens[block * config.window : (block + 1) * config.window]]
        for layer in range(config.layers):
            entering = memory[layer]
            initial = weights.get(f"transformer{layer}/recurrent_initial_state")
            if block_starts:
                entering = {name: torch.zeros_like(value) for name, value in entering.items()}
            if initial is not None and (block_starts or (block == 0 and _recurrent(config, layer).clear_state)):
                entering = {**entering, "state": initial}
            memory[layer] = entering
        fed_back = None
        if config.feedback:
            source = config.feeding_layers()[-1]
            fed_back = _state_heads(weights, config, source, memory[source]["state"])
        for layer in range(config.layers):
            x, memory[layer] = _layer(weights, config, layer, x, memory[layer], fed_back)
        x = _rms_norm(x, weights["final_layernorm/scale"])
        divisor = config.width if config.logit_scale == "width" else config.vocab_size or 0
        logits.append(x @ table.T / math.sqrt(divisor))
    return torch.cat(logits), memory


def _layer(
    weights: Weights,
    config: ModelConfig,
    layer: int,
    x: Tensor,
    memory: Memory,
    fed_back: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor, Memory]:
    """One block: x (W, D), what the layer remembers of the block before and of the state, another layer's state."""
    base, mixer = f"transformer{layer}/tbase", _attention(config, layer)
    normed = _rms_norm(x, weights[f"{base}/_kvq/pre_attn_layernorm/scale"])

    def project(kind: str) -> Tensor:
        return _heads(normed @ weights[f"{base}/_kvq/{kind}_layer/kernel"], config)

    keys, values, queries = _unit(project("keys")), project("values"), _unit(project("queries"))
    seen_keys, seen_values = torch.cat([memory["keys"], keys]), torch.cat([memory["values"], values])
    scale = _scale(weights[f"{base}/_kvq/attention_scale"], mixer)
    logits, mask = _with_positions(weights, config, layer, queries, seen_keys)
    attended = _read(logits, seen_values, scale, mask).flatten(1)

    after, states = {"keys": keys, "values": values}, fed_back
    if "state" in memory:
        states = _state_heads(weights, config, layer, memory["state"])
        after["state"] = _cell(weights, config, layer, memory["state"], seen_keys, seen_values)
    if states is not None:
        scale = _scale(weights[f"{base}/attention_scale2"], mixer)
        crossed = _attend(_unit(project("queries2")), *states, scale).flatten(1)
        attended = torch.cat([attended, crossed], 1)

    x = x + attended @ weights[f"{base}/post_attn_mlp/output_layer/kernel"]
    normed = _rms_norm(x, weights[f"{base}/pre_ffn_layernorm/scale"])
    hidden = torch.relu(normed @ weights[f"{base}/ffn/hidden0/kernel"])
    return x + hidden @ weights[f"{base}/ffn/output_layer/kernel"], after


def _project_state(weights: Weights, config: ModelConfig, layer: int, state: Tensor, kind: str) -> Tensor:
    base = f"transformer{layer}/recurrent_tbase/_kvq"
    normed = _rms_norm(state, weights[f"{base}/pre_attn_layernorm/scale"]) + weights[f"{base}/position_embeddings"]
    return _heads(normed @ weights[f"{base}/{kind}_layer/kernel"], config)


def _state_heads(weights: Weights, config: ModelConfig, layer: int, state: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values (S, H, E) of the state (S, D) that enters a block."""
    keys, values = (_project_state(weights, config, layer, state, kind) for kind in ("keys", "values"))
    return _unit(keys), values


def _cell(
    weights: Weights, config: ModelConfig, layer: int, state: Tensor, token_keys: Tensor, token_values: Tensor
) -> Tensor:
    """The state (S, D) that leaves a block, from the one that enters it."""
    base, mixer = f"transformer{layer}/recurrent_tbase", _recurrent(config, layer)
    keys, values = _state_heads(weights, config, layer, state)
    queries, queries2 = (_unit(_project_state(weights, config, layer, state, kind)) for kind in ("queries", "queries2"))
    own = _attend(queries, keys, values, _scale(weights[f"{base}/_kvq/attention_scale"], mixer))
    read = _attend(queries2, token_keys, token_values, _scale(weights[f"{base}/attention_scale2"], mixer))
    attended = torch.cat([own.flatten(1), read.flatten(1)], 1)

    if mixer.cell != "single":
        site = f"{base}/post_attn_mlp"
        update = attended @ weights[f"{site}/output_layer/kernel"]
        state_after = _gate(weights, mixer, site, state, update, attended)
        if mixer.cell == "skip":
            return state_after
        state, attended = state_after, _rms_norm(state_after, weights[f"{base}/pre_ffn_layernorm/scale"])
    hidden = torch.relu(attended @ weights[f"{base}/ffn/hidden0/kernel"])
    update = hidden @ weights[f"{base}/ffn/output_layer/kernel"]
    if mixer.cell == "single":
        update = torch.tanh(update)
    return _gate(weights, mixer, f"{base}/ffn", state, update, hidden)


def _gate(weights: Weights, mixer: RecurrentMixer, site: str, state: Tensor, update: Tensor, seen: Tensor) -> Tensor:
    if mixer.gate == "fixed":
        keep = torch.sigmoid(weights[f"{site}/gate_bias"])
        return state * keep + update * (1 - keep)
    forget = seen @ weights[f"{site}/forget_gate/kernel"] + weights[f"{site}/forget_gate/bias"]
    into = seen @ weights[f"{site}/input_gate/kernel"] + weights[f"{site}/input_gate/bias"]
    return state * torch.sigmoid(forget + 1) + update * torch.sigmoid(into - 1)


def _with_positions(
    weights: Weights, config: ModelConfig, layer: int, queries: Tensor, keys: Tensor
) -> tuple[Tensor, Tensor]:
    """Logits (H, n, m) of n queries to m = 2n keys, and their mask (n, m): 0 for the n keys before a query, or -inf."""
    window = config.window
    logits, mask = queries.new_zeros(config.heads, window, 2 * window), queries.new_zeros(window, 2 * window)
    for query in range(window):
        for key in range(2 * window):
            distance = query - (key - window)
            if not 1 <= distance <= window:
                mask[query, key] = -math.inf
                continue
            seen = _turned(keys[key], -distance) if _attention(config, layer).positions == "rotary" else keys[key]
            logits[:, query, key] = (queries[query] * seen).sum(-1)
            if _attention(config, layer).positions == "t5":
                table = weights[f"transformer{layer}/relative_positions/rel_embedding"]
                logits[:, query, key] += table[:, _bucket(distance)]
    return logits, mask


def _turned(x: Tensor, position: int) -> Tensor:
    """Rotary: channels j and j + E/2 of (H, E) are a complex number, multiplied by exp(i position 10000^(-2j/E))."""
    size = x.shape[-1]
    angles = torch.tensor([position * 10000 ** (-2 * j / size) for j in range(size // 2)], dtype=x.dtype)
    turned = torch.complex(x[:, : size // 2], x[:, size // 2 :]) * torch.exp(1j * angles)
    return torch.cat([turned.real, turned.imag], -1)


def _attend(queries: Tensor, keys: Tensor, values: Tensor, scale: Tensor) -> Tensor:
    """(n, H, E) queries to all of (m, H, E) keys."""
    return _read(torch.einsum("nhe,mhe->hnm", queries, keys), values, scale)


def _read(logits: Tensor, values: Tensor, scale: Tensor, mask: Tensor | float = 0.0) -> Tensor:
    """Logits (H, n, m) and values (m, H, E) -> (n, H, E)."""
    return torch.einsum("hnm,mhe->nhe", torch.softmax(logits * scale[:, None, None] + mask, -1), values)


def _bucket(distance: int) -> int:
    """T5's buckets, one direction: 16 exact ones, then 16 that grow to distance 128."""
    if distance < 16:
        return distance
    return min(31, 16 + math.floor(16 * math.log(distance / 16) / math.log(128 / 16)))


def _heads(x: Tensor, config: ModelConfig) -> Tensor:
    return x.reshape(len(x), config.heads, config.head_dim)


def _scale(weight: Tensor, mixer: AttentionMixer) -> Tensor:
    return weight.abs() if mixer.attention_scale == "absolute" else weight


def _unit(x: Tensor) -> Tensor:
    return x / torch.sqrt((x * x).sum(-1, keepdim=True) + 1e-6)


def _rms_norm(x: Tensor, scale: Tensor) -> Tensor:
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-6) * scale


def _attention(config: ModelConfig, layer: int) -> AttentionMixer:
    return cast(AttentionMixer, config.mixer_of(layer))


def _recurrent(config: ModelConfig, layer: int) -> RecurrentMixer:
    return cast(RecurrentMixer, config.mixer_of(layer))


def _row(memory: Memory, stream: int) -> Memory:
    return {name: value[stream] for name, value in memory.items()}


def _stack(rows: Sequence[Memory]) -> Memory:
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
