"""Weights of the reference implementation (google-research/meliad, Flax) <-> our logical parameters.

Both ways are permutations, so they serve weights, gradients and optimizer moments alike.  The reference has one
kernel (inputs, outputs) per map, with heads as h*E + e; we have weights (outputs, inputs), with the maps of one input
in one tensor and the head as the slowest index (see `brt_dist.model.linear`).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from brt_dist.config.schema import ModelConfig
from brt_dist.errors import CheckpointError


def from_reference(reference: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Our logical tensors by logical name, from tensors with the reference's names and shapes.

    Raises:
        CheckpointError: a tensor is missing, unknown, or of a shape that does not fit `config`.
    """
    rules = dict(_rules(config))
    expected = {source for rule in rules.values() for source in rule.sources}
    missing, unknown = sorted(expected - reference.keys()), sorted(reference.keys() - expected)
    if missing or unknown:
        raise CheckpointError(
            f"these are not the weights of this network: {len(missing)} tensors are missing{_some(missing)}, "
            f"{len(unknown)} are unknown{_some(unknown)}"
        )
    ours = {}
    for name, rule in rules.items():
        try:
            ours[name] = rule.join([reference[source] for source in rule.sources]).contiguous()
        except RuntimeError:
            shapes = [tuple(reference[source].shape) for source in rule.sources]
            raise CheckpointError(
                f"{', '.join(rule.sources)}: shapes {shapes} do not fit model.width={config.width}, "
                f"heads={config.heads}, head_dim={config.head_dim}, mlp_width={config.mlp_width}"
            ) from None
    return ours


def to_reference(ours: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Tensors with the reference's names and shapes, from our logical tensors: the inverse of `from_reference`."""
    reference = {}
    for name, rule in _rules(config):
        for source, tensor in zip(rule.sources, rule.split(ours[name]), strict=True):
            reference[source] = tensor.contiguous()
    return reference


@dataclass(frozen=True)
class _Same:
    """One tensor, as it is."""

    sources: tuple[str, ...]

    def join(self, tensors: list[Tensor]) -> Tensor:
        return tensors[0]

    def split(self, tensor: Tensor) -> list[Tensor]:
        return [tensor]


@dataclass(frozen=True)
class _Projections:
    """Kernels (D, H*E) of one input <-> weight (H*kinds*E, D)."""

    sources: tuple[str, ...]
    heads: int

    def join(self, tensors: list[Tensor]) -> Tensor:
        kinds = [kernel.T.unflatten(0, (self.heads, -1)) for kernel in tensors]
        return torch.stack(kinds, 1).flatten(0, 2)

    def split(self, tensor: Tensor) -> list[Tensor]:
        kinds = tensor.unflatten(0, (self.heads, len(self.sources), -1))
        return [kind.flatten(0, 1).T for kind in kinds.unbind(1)]


@dataclass(frozen=True)
class _FromHeads:
    """Kernels (kinds*H*E, outputs) that read merged heads <-> weight (sources*outputs, H*kinds*E)."""

    sources: tuple[str, ...]
    heads: int
    kinds: int = 2

    def join(self, tensors: list[Tensor]) -> Tensor:
        return torch.cat([self._reorder(kernel.T, (self.kinds, self.heads, -1)) for kernel in tensors])

    def split(self, tensor: Tensor) -> list[Tensor]:
        weights = tensor.chunk(len(self.sources))
        return [self._reorder(weight, (self.heads, self.kinds, -1)).T for weight in weights]

    def _reorder(self, weight: Tensor, order: tuple[int, int, int]) -> Tensor:
        return weight.unflatten(1, order).transpose(1, 2).flatten(1)


@dataclass(frozen=True)
class _Kernels:
    """Kernels (inputs, outputs) of one input <-> weight (sources*outputs, inputs)."""

    sources: tuple[str, ...]

    def join(self, tensors: list[Tensor]) -> Tensor:
        return torch.cat([kernel.T for kernel in tensors])

    def split(self, tensor: Tensor) -> list[Tensor]:
        return [weight.T for weight in tensor.chunk(len(self.sources))]


_Rule = _Same | _Kernels | _Projections | _FromHeads


def _rules(config: ModelConfig) -> Iterator[tuple[str, _Rule]]:
    """Logical name and rule of every parameter of the network."""
    yield "embedding.weight", _Same(("embed/embedding",))
    yield "final_norm.weight", _Same(("final_layernorm/scale",))
    for index in range(config.layers):
        for name, rule in _layer_rules(config, f"transformer{index}", index in config.recurrent_indices()):
            yield f"layers.{index}.{name}", rule


def _layer_rules(config: ModelConfig, layer: str, recurrent: bool) -> Iterator[tuple[str, _Rule]]:
    tokens, crosses = f"{layer}/tbase", recurrent or config.feedback
    yield "tokens.norm.weight", _Same((f"{tokens}/_kvq/pre_attn_layernorm/scale",))
    yield "tokens.projections.weight", _projections(config, tokens, crosses)
    yield "tokens.scale.weight", _Same((f"{tokens}/_kvq/attention_scale",))
    if config.positions == "t5":
        yield "tokens.positions.weight", _Same((f"{layer}/relative_positions/rel_embedding",))
    yield "tokens.merge.weight", _FromHeads((f"{tokens}/post_attn_mlp/output_layer/kernel",), config.heads, 1 + crosses)
    yield "mlp.norm.weight", _Same((f"{tokens}/pre_ffn_layernorm/scale",))
    yield "mlp.hidden.weight", _Kernels((f"{tokens}/ffn/hidden0/kernel",))
    yield "mlp.output.weight", _Kernels((f"{tokens}/ffn/output_layer/kernel",))
    if crosses:
        yield "tokens.state_scale.weight", _Same((f"{tokens}/attention_scale2",))
    if recurrent:
        yield "cell.initial_state", _Same((f"{layer}/recurrent_initial_state",))
        for name, rule in _cell_rules(config, f"{layer}/recurrent_tbase"):
            yield f"cell.{name}", rule


def _cell_rules(config: ModelConfig, cell: str) -> Iterator[tuple[str, _Rule]]:
    yield "norm.weight", _Same((f"{cell}/_kvq/pre_attn_layernorm/scale",))
    yield "identities", _Same((f"{cell}/_kvq/position_embeddings",))
    yield "projections.weight", _projections(config, cell, crosses=True)
    yield "scale.weight", _Same((f"{cell}/_kvq/attention_scale",))
    yield "token_scale.weight", _Same((f"{cell}/attention_scale2",))
    if config.cell == "skip":
        yield from _update_rules(config, "tail.update", f"{cell}/post_attn_mlp", from_heads=True)
        return
    if config.cell == "single":
        yield "tail.hidden.weight", _FromHeads((f"{cell}/ffn/hidden0/kernel",), config.heads)
    else:
        yield from _update_rules(config, "tail.attention_update", f"{cell}/post_attn_mlp", from_heads=True)
        yield "tail.norm.weight", _Same((f"{cell}/pre_ffn_layernorm/scale",))
        yield "tail.hidden.weight", _Kernels((f"{cell}/ffn/hidden0/kernel",))
    yield from _update_rules(config, "tail.update", f"{cell}/ffn", from_heads=False)


def _update_rules(config: ModelConfig, ours: str, theirs: str, from_heads: bool) -> Iterator[tuple[str, _Rule]]:
    def kernels(*sources: str) -> _Rule:
        return _FromHeads(sources, config.heads) if from_heads else _Kernels(sources)

    yield f"{ours}.output.weight", kernels(f"{theirs}/output_layer/kernel")
    if config.gate == "fixed":
        yield f"{ours}.gate.bias", _Same((f"{theirs}/gate_bias",))
        return
    gates = f"{theirs}/input_gate", f"{theirs}/forget_gate"
    yield f"{ours}.gate.kernels.weight", kernels(*(f"{gate}/kernel" for gate in gates))
    yield f"{ours}.gate.input_bias", _Same((f"{gates[0]}/bias",))
    yield f"{ours}.gate.forget_bias", _Same((f"{gates[1]}/bias",))


def _projections(config: ModelConfig, base: str, crosses: bool) -> _Projections:
    kinds = ("keys", "values", "queries", "queries2") if crosses else ("keys", "values", "queries")
    return _Projections(tuple(f"{base}/_kvq/{kind}_layer/kernel" for kind in kinds), config.heads)


def _some(names: list[str]) -> str:
    return f" ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})" if names else ""
