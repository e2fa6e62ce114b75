"""Weights with the reference's names and shapes, in and out."""

from typing import Any

import pytest
import torch

from brt_dist.errors import CheckpointError
from brt_dist.export.reference import from_reference, to_reference
from brt_dist.model.model import BlockRecurrentModel
from brt_dist.model.parameters import logical_parameters
from tests.unit.model.networks import VARIANTS, small


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
def test_round_trip_of_every_parameter(variant: dict[str, Any]) -> None:
    config = small(**variant)
    ours = {p.name: torch.randn(p.shape) for p in logical_parameters(BlockRecurrentModel(config))}
    reference = to_reference(ours, config)
    back = from_reference(reference, config)
    assert back.keys() == ours.keys()
    for name, tensor in ours.items():
        assert torch.equal(back[name], tensor), name
    assert sum(t.numel() for t in reference.values()) == sum(t.numel() for t in ours.values())


def test_weights_of_another_network_are_refused() -> None:
    config = small()
    ours = {p.name: torch.randn(p.shape) for p in logical_parameters(BlockRecurrentModel(config))}
    reference = to_reference(ours, config)
    with pytest.raises(CheckpointError, match=r"2 are unknown \(transformer2"):
        from_reference(reference | {"transformer2/a": torch.ones(1), "transformer2/b": torch.ones(1)}, config)
    del reference["transformer1/recurrent_tbase/attention_scale2"]
    with pytest.raises(
        CheckpointError, match=r"1 tensors are missing \(transformer1/recurrent_tbase/attention_scale2\)"
    ):
        from_reference(reference, config)
    reference["transformer1/recurrent_tbase/attention_scale2"] = torch.ones(2)
    reference["transformer0/tbase/_kvq/keys_layer/kernel"] = torch.ones(10, 13)
    with pytest.raises(CheckpointError, match="keys_layer"):
        from_reference(reference, config)
