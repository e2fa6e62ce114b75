"""Weights of the reference implementation (google-research/meliad, Flax) <-> our logical parameters.

Both directions are permutations, so they serve weights, gradients and optimizer moments alike.  The reference has one
kernel (inputs, outputs) per map; each kind of mixer and FFN says how to assemble its parameters from them.
"""

from collections.abc import Iterator, Mapping

from torch import Tensor

from brt_dist.config.schema import ModelConfig
from brt_dist.errors import CheckpointError
from brt_dist.model.reference_names import Permutation, Same


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
            f"the weights do not fit this model: {len(missing)} tensors are missing{_some(missing)}, "
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
                f"heads={config.heads}, head_dim={config.head_dim} and the FFN's width"
            ) from None
    return ours


def to_reference(ours: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Tensors with the reference's names and shapes, from our logical tensors: the inverse of `from_reference`."""
    reference = {}
    for name, rule in _rules(config):
        for source, tensor in zip(rule.sources, rule.split(ours[name]), strict=True):
            reference[source] = tensor.contiguous()
    return reference


def _rules(config: ModelConfig) -> Iterator[tuple[str, Permutation]]:
    """Logical name and rule of every parameter of the network."""
    yield "embedding.weight", Same(("embed/embedding",))
    yield "final_norm.weight", Same(("final_layernorm/scale",))
    for index in range(config.layers):
        for name, rule in config.mixer_of(index).reference_names(config, index):
            yield f"layers.{index}.{name}", rule
        for name, rule in config.ffn_of(index).reference_names(config, index):
            yield f"layers.{index}.mlp.{name}", rule


def _some(names: list[str]) -> str:
    return f" ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})" if names else ""
