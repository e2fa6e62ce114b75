"""Our parameters as rearrangements of tensors of the reference implementation (google-research/meliad, Flax).

Every rule is a permutation, so it serves weights, gradients and optimizer moments alike.  The reference has one kernel
(inputs, outputs) per map, with heads as h*E + e; we have weights (outputs, inputs), with the maps of one input in one
tensor and the head as the slowest index (see `linear.py`).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor


@dataclass(frozen=True)
class Same:
    """One tensor, unchanged."""

    sources: tuple[str, ...]

    def join(self, tensors: list[Tensor]) -> Tensor:
        return tensors[0]

    def split(self, tensor: Tensor) -> list[Tensor]:
        return [tensor]


@dataclass(frozen=True)
class Projections:
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
class FromHeads:
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
class Kernels:
    """Kernels (inputs, outputs) of one input <-> weight (sources*outputs, inputs)."""

    sources: tuple[str, ...]

    def join(self, tensors: list[Tensor]) -> Tensor:
        return torch.cat([kernel.T for kernel in tensors])

    def split(self, tensor: Tensor) -> list[Tensor]:
        return [weight.T for weight in tensor.chunk(len(self.sources))]


Permutation: TypeAlias = Same | Kernels | Projections | FromHeads


def cell_names(base: str, cell: str, gate: str, heads: int) -> Iterator[tuple[str, Permutation]]:
    """Of the recurrent cell at `base` in the reference's names.  cell, gate: as in the config."""
    yield "norm.weight", Same((f"{base}/_kvq/pre_attn_layernorm/scale",))
    yield "identities", Same((f"{base}/_kvq/position_embeddings",))
    yield "projections.weight", projections(base, heads, crosses=True)
    yield "scale.weight", Same((f"{base}/_kvq/attention_scale",))
    yield "token_scale.weight", Same((f"{base}/attention_scale2",))
    if cell == "skip":
        yield from _update_names(gate, heads, "tail.update", f"{base}/post_attn_mlp", from_heads=True)
        return
    if cell == "single":
        yield "tail.hidden.weight", FromHeads((f"{base}/ffn/hidden0/kernel",), heads)
    else:
        yield from _update_names(gate, heads, "tail.attention_update", f"{base}/post_attn_mlp", from_heads=True)
        yield "tail.norm.weight", Same((f"{base}/pre_ffn_layernorm/scale",))
        yield "tail.hidden.weight", Kernels((f"{base}/ffn/hidden0/kernel",))
    yield from _update_names(gate, heads, "tail.update", f"{base}/ffn", from_heads=False)


def _update_names(gate: str, heads: int, ours: str, theirs: str, from_heads: bool) -> Iterator[tuple[str, Permutation]]:
    def kernels(*sources: str) -> Permutation:
        return FromHeads(sources, heads) if from_heads else Kernels(sources)

    yield f"{ours}.output.weight", kernels(f"{theirs}/output_layer/kernel")
    if gate == "fixed":
        yield f"{ours}.gate.bias", Same((f"{theirs}/gate_bias",))
        return
    gates = f"{theirs}/input_gate", f"{theirs}/forget_gate"
    yield f"{ours}.gate.kernels.weight", kernels(*(f"{gate}/kernel" for gate in gates))
    yield f"{ours}.gate.input_bias", Same((f"{gates[0]}/bias",))
    yield f"{ours}.gate.forget_bias", Same((f"{gates[1]}/bias",))


def projections(base: str, heads: int, crosses: bool) -> Projections:
    """Of the fused projection at `base`; with `crosses` it has queries of states too."""
    kinds = ("keys", "values", "queries", "queries2") if crosses else ("keys", "values", "queries")
    return Projections(tuple(f"{base}/_kvq/{kind}_layer/kernel" for kind in kinds), heads)
