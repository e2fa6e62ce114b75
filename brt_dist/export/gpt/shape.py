"""What the config.json of a plain GPT describes, and the model of ours that fits it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from brt_dist.config.schema import ModelConfig
from brt_dist.errors import CheckpointError
from brt_dist.reading import record_of

Family = Literal["gpt2", "llama"]
FAMILIES: dict[str, Family] = {"gpt2": "gpt2", "llama": "llama", "mistral": "llama"}  # by model_type
_LARGEST = 1 << 24  # of any size
_WINDOW = 512


@dataclass(frozen=True)
class GptShape:
    """Sizes of a GPT.

    Attributes:
        family: how its tensors are named and what its layers compute.
        kv_heads: heads of keys and values, which groups of query heads share.
        tied: whether the embedding also scores the tokens.
        differences: what our layers compute differently, whatever the weights.
    """

    family: Family
    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn_width: int
    vocab_size: int
    tied: bool
    differences: tuple[str, ...]

    @property
    def ffn(self) -> str:
        """The kind of FFN that computes the same."""
        return "gelu" if self.family == "gpt2" else "swiglu"

    def section(self) -> dict[str, Any]:
        """The model section that fits, with one recurrent layer."""
        window = {"positions": "rotary" if self.family == "llama" else "t5"}
        recurrent = {**window, "layers": [-3 if self.layers > 3 else -1], "states": _WINDOW}
        return {
            "layers": self.layers,
            "width": self.width,
            "heads": self.heads,
            "head_dim": self.head_dim,
            "window": _WINDOW,
            "mixers": {"window": window, "recurrent": recurrent} if self.layers > 1 else {"window": window},
            "ffns": {self.ffn: {"width": self.ffn_width}},
        }

    def misfits(self, model: ModelConfig) -> Iterator[str]:
        """A message for each size of `model` that is not this GPT's."""
        for key in ("layers", "width", "heads", "head_dim"):
            if getattr(model, key) != getattr(self, key):
                yield f"model.{key}={getattr(model, key)}, but the weights have {getattr(self, key)}"
        for name, ffn in model.ffns.items():
            if ffn.kind == self.ffn and (width := getattr(ffn, "width", None)) != self.ffn_width:
                yield f"model.ffns.{name}.width={width}, but the weights have {self.ffn_width}"
        if model.vocab_size is None or model.vocab_size > self.vocab_size:
            yield (
                f"the dataset's tokenizer has {model.vocab_size} tokens, but the weights embed {self.vocab_size}; "
                "build the dataset with the tokenizer of the weights"
            )


@dataclass(frozen=True)
class _Gpt2:
    n_layer: int
    n_embd: int
    n_head: int
    vocab_size: int
    n_inner: int | None = None
    activation_function: str = "gelu_new"

    def shape(self) -> GptShape:
        about = [
            "LayerNorm before attention and at the end: ours are RMSNorms; mean and weight are folded into the "
            "projections, but not at the end, and biases are dropped",
            "learned positions are dropped: ours are T5's relative bias, rotary, or none",
        ]
        if self.activation_function not in ("gelu_new", "gelu_pytorch_tanh"):
            about.append(f"activation {self.activation_function}: ours is GELU with the tanh approximation")
        return GptShape(
            "gpt2",
            self.n_layer,
            self.n_embd,
            self.n_head,
            self.n_head,
            self.n_embd // max(self.n_head, 1),
            self.n_inner or 4 * self.n_embd,
            self.vocab_size,
            True,
            tuple(about),
        )


@dataclass(frozen=True)
class _Llama:
    num_hidden_layers: int
    hidden_size: int
    num_attention_heads: int
    vocab_size: int
    intermediate_size: int
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_act: str = "silu"
    rms_norm_eps: float = 1e-6
    rope_theta: float | None = None
    rope_parameters: Mapping[str, Any] | None = field(default=None)
    rope_scaling: Mapping[str, Any] | None = field(default=None)
    tie_word_embeddings: bool = False

    def shape(self) -> GptShape:
        about = []
        rope = dict(self.rope_parameters or self.rope_scaling or {})
        theta = rope.get("rope_theta", self.rope_theta or 10_000.0)
        if theta != 10_000.0:
            about.append(f"rotary base {theta}: ours is 10000")
        if (scaling := rope.get("rope_type", rope.get("type", "default"))) != "default":
            about.append(f"rotary scaling {scaling}: ours has none")
        if self.rms_norm_eps != 1e-6:
            about.append(f"epsilon of the norms {self.rms_norm_eps}: ours is 1e-06")
        if self.hidden_act != "silu":
            about.append(f"activation {self.hidden_act}: ours is SiLU")
        if not self.tie_word_embeddings:
            about.append("the separate output matrix is dropped: ours is the embedding")
        return GptShape(
            "llama",
            self.num_hidden_layers,
            self.hidden_size,
            self.num_attention_heads,
            self.num_key_value_heads or self.num_attention_heads,
            self.head_dim or self.hidden_size // max(self.num_attention_heads, 1),
            self.intermediate_size,
            self.vocab_size,
            self.tie_word_embeddings,
            tuple(about),
        )


def shape_of(config: Mapping[str, Any], where: str) -> GptShape:
    """The shape that a config.json describes.

    Args:
        config: its content, of a family that is known.
        where: its place, for messages.

    Raises:
        CheckpointError: a size is missing or invalid.
    """
    kind: type[_Gpt2] | type[_Llama] = _Gpt2 if FAMILIES[config["model_type"]] == "gpt2" else _Llama
    if config.get("quantization_config"):
        raise CheckpointError(f"{where}: quantized weights are not read; save them in float32, bfloat16 or float16")
    try:
        shape = record_of(dict(config), kind).shape()
    except ValueError as error:
        raise CheckpointError(f"{where}: not the config of a {config['model_type']} model: {error}") from None
    for name in ("layers", "width", "heads", "kv_heads", "head_dim", "ffn_width", "vocab_size"):
        if not 0 < getattr(shape, name) <= _LARGEST:
            raise CheckpointError(f"{where}: {name} cannot be {getattr(shape, name)}")
    if shape.heads % shape.kv_heads:
        raise CheckpointError(f"{where}: {shape.heads} heads cannot share {shape.kv_heads} heads of keys")
    return shape
