"""How each of our tensors is made from a GPT's; a tensor without a rule starts as in a new run.

Our attention differs from a GPT's in ways that no weights can undo: queries and keys have unit length, a learned scale
per head replaces 1/sqrt(E), a token does not see itself, and it sees only W tokens.  So the projections to heads and
back are used unchanged, and the scale is estimated: with hidden states of unit variance, a head's
queries have the length of its map (Frobenius norm), and the scale is that of queries times that of keys over sqrt(E).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from brt_dist.config.schema import ModelConfig
from brt_dist.export.gpt.shape import GptShape
from brt_dist.model.mixers.window import AttentionMixer

AS_IT_IS = "unchanged"
Shape = tuple[int, ...]
Drawn = Callable[[], Tensor]


@dataclass(frozen=True)
class Rule:
    """How a tensor is made.

    Attributes:
        sources: names of a GPT's tensors, without the prefix of the whole model, and their shapes.
        how: in words.
        make: makes it from these tensors, float32, and a function that gives the tensor a new run starts with.
    """

    sources: tuple[tuple[str, Shape], ...]
    how: str
    make: Callable[[Sequence[Tensor], Drawn], Tensor]


def rules(shape: GptShape, model: ModelConfig) -> Iterator[tuple[str, Rule]]:
    """Logical name and rule of every tensor that maps; `model` has the sizes of `shape`."""
    names = _GPT2 if shape.family == "gpt2" else _LLAMA
    width, rows = shape.width, model.vocab_size or 0
    cut = AS_IT_IS if rows == shape.vocab_size else f"the first {rows} rows"
    embedding = (names["embedding"], (shape.vocab_size, width))
    yield "embedding.weight", Rule((embedding,), cut, lambda theirs, _: theirs[0][:rows])
    factor = math.sqrt(width if model.logit_scale == "width" else rows)
    yield (
        "final_norm.weight",
        Rule(
            ((names["final_norm"], (width,)),),
            "multiplied by the divisor of our logits",
            lambda theirs, _: theirs[0] * factor,
        ),
    )
    for layer in range(shape.layers):
        mixer = model.mixer_of(layer)
        if isinstance(mixer, AttentionMixer) and mixer.qkv == "dense":
            make = _gpt2_attention if shape.family == "gpt2" else _llama_attention
            for name, rule in make(shape, layer, mixer.crosses(model)):
                yield f"layers.{layer}.{name}", rule
        if model.ffn_of(layer).kind == shape.ffn:
            for name, rule in (_gpt2_ffn if shape.family == "gpt2" else _llama_ffn)(shape, layer):
                yield f"layers.{layer}.mlp.{name}", rule


_GPT2 = {"embedding": "wte.weight", "final_norm": "ln_f.weight"}
_LLAMA = {"embedding": "embed_tokens.weight", "final_norm": "norm.weight"}


def _plain(name: str, shape: Shape) -> Rule:
    return Rule(((name, shape),), AS_IT_IS, lambda theirs, _: theirs[0])


def _turned(name: str, shape: Shape) -> Rule:
    """GPT-2 keeps matrices as (inputs, outputs)."""
    return Rule(((name, shape),), "transposed", lambda theirs, _: theirs[0].t())


def _llama_attention(shape: GptShape, layer: int, crosses: bool) -> Iterator[tuple[str, Rule]]:
    base, width, size = f"layers.{layer}", shape.width, shape.head_dim
    norm = (f"{base}.input_layernorm.weight", (width,))
    query = (f"{base}.self_attn.q_proj.weight", (shape.heads * size, width))
    key = (f"{base}.self_attn.k_proj.weight", (shape.kv_heads * size, width))
    value = (f"{base}.self_attn.v_proj.weight", (shape.kv_heads * size, width))
    output = (f"{base}.self_attn.o_proj.weight", (width, shape.heads * size))

    def heads(weight: Tensor) -> Tensor:
        split = weight.view(-1, 1, size, width)
        return split.expand(-1, shape.heads // len(split), -1, -1).flatten(0, 1)

    def project(theirs: Sequence[Tensor], drawn: Drawn) -> Tensor:
        return _stacked([heads(theirs[1]), heads(theirs[2]), heads(theirs[0])], drawn if crosses else None)

    def scale(theirs: Sequence[Tensor], _: Drawn) -> Tensor:
        return _scale(heads(theirs[1]) * theirs[0], heads(theirs[2]) * theirs[0])

    yield "tokens.norm.weight", _plain(*norm)
    how = "by heads" if shape.kv_heads == shape.heads else "by heads, shared keys and values repeated"
    yield "tokens.projections.weight", Rule((query, key, value), f"{how}{_NEW_QUERIES * crosses}", project)
    yield "tokens.scale.weight", Rule((norm, query, key), "estimated from queries and keys", scale)
    yield (
        "tokens.merge.weight",
        Rule((output,), _merge_how(crosses), lambda theirs, _: _merged(theirs[0], size, crosses)),
    )


def _gpt2_attention(shape: GptShape, layer: int, crosses: bool) -> Iterator[tuple[str, Rule]]:
    base, width, size = f"h.{layer}", shape.width, shape.head_dim
    norm = (f"{base}.ln_1.weight", (width,))
    maps = (f"{base}.attn.c_attn.weight", (width, 3 * width))
    output = (f"{base}.attn.c_proj.weight", (width, width))

    def heads(theirs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Queries, keys and values (H, E, D), with the weight and the mean subtraction of the LayerNorm folded in."""
        weighted = theirs[1].t() * theirs[0]
        centred = weighted - weighted.mean(1, keepdim=True)
        return centred.unflatten(0, (3, shape.heads, size)).unbind(0)

    def project(theirs: Sequence[Tensor], drawn: Drawn) -> Tensor:
        queries, keys, values = heads(theirs)
        return _stacked([keys, values, queries], drawn if crosses else None)

    yield "tokens.norm.weight", Rule((norm,), "ones: folded into the projections", lambda theirs, _: torch.ones(width))
    how = "by heads, with the weight and the mean of the norm"
    yield "tokens.projections.weight", Rule((norm, maps), f"{how}{_NEW_QUERIES * crosses}", project)
    estimate = "estimated from queries and keys"
    yield "tokens.scale.weight", Rule((norm, maps), estimate, lambda theirs, _: _scale(*heads(theirs)[:2]))
    yield (
        "tokens.merge.weight",
        Rule((output,), _merge_how(crosses), lambda theirs, _: _merged(theirs[0].t(), size, crosses)),
    )


def _llama_ffn(shape: GptShape, layer: int) -> Iterator[tuple[str, Rule]]:
    base, width, hidden = f"layers.{layer}", shape.width, shape.ffn_width
    yield "norm.weight", _plain(f"{base}.post_attention_layernorm.weight", (width,))
    gates = tuple((f"{base}.mlp.{name}_proj.weight", (hidden, width)) for name in ("gate", "up"))
    yield "hidden.weight", Rule(gates, "row by row", lambda theirs, _: torch.stack(list(theirs), 1).flatten(0, 1))
    yield "output.weight", _plain(f"{base}.mlp.down_proj.weight", (width, hidden))


def _gpt2_ffn(shape: GptShape, layer: int) -> Iterator[tuple[str, Rule]]:
    base, width, hidden = f"h.{layer}", shape.width, shape.ffn_width
    yield "norm.weight", _plain(f"{base}.ln_2.weight", (width,))
    yield "norm.bias", _plain(f"{base}.ln_2.bias", (width,))
    yield "hidden.weight", _turned(f"{base}.mlp.c_fc.weight", (width, hidden))
    yield "hidden_bias", _plain(f"{base}.mlp.c_fc.bias", (hidden,))
    yield "output.weight", _turned(f"{base}.mlp.c_proj.weight", (hidden, width))
    yield "output_bias", _plain(f"{base}.mlp.c_proj.bias", (width,))


_NEW_QUERIES = "; new queries for the states"


def _merge_how(crosses: bool) -> str:
    return "by heads; zeros for the states, which contribute nothing at first" if crosses else AS_IT_IS


def _stacked(taken: Sequence[Tensor], drawn: Drawn | None) -> Tensor:
    """Rows (head, [key, value, query, query of states], E): `taken` (H, E, D) each; of states, as drawn."""
    heads, size, width = taken[0].shape
    parts = [torch.stack(list(taken), 1)]
    if drawn is not None:
        parts.append(drawn().view(heads, -1, size, width)[:, len(taken) :])
    return torch.cat(parts, 1).view(-1, width)


def _merged(output: Tensor, size: int, crosses: bool) -> Tensor:
    """Columns (head, [from tokens, from states], E): `output` (D, H*E), and zeros."""
    columns = output.unflatten(1, (-1, 1, size))
    return torch.cat([columns, torch.zeros_like(columns)], 2).flatten(1) if crosses else output


def _scale(queries: Tensor, keys: Tensor) -> Tensor:
    """(H,) of maps (H, E, D) of hidden states with unit variance."""
    return queries.flatten(1).norm(dim=1) * keys.flatten(1).norm(dim=1) / math.sqrt(queries.shape[1])
