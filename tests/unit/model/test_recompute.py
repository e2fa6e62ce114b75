"""What is computed again has the same bits."""

import pytest
import torch

from brt_dist.config.schema import ParallelConfig
from brt_dist.model.dropout import Dropout
from brt_dist.model.model import BlockRecurrentModel
from brt_dist.model.recompute import Recompute
from tests.unit.model.networks import fields, gradients, small, some_memory, starts_of, tokens_of


@pytest.mark.parametrize("feedback", [False, True])
@pytest.mark.parametrize("recompute", ["attention", "layer"])
def test_recompute_changes_no_bit(recompute: Recompute, feedback: bool) -> None:
    config = small(feedback=feedback, dropout=0.2)
    tokens, target = tokens_of(config, 2, 3), tokens_of(config, 2, 3, seed=1)
    starts = starts_of([0, 1, 0], [0, 0, 0])

    def outcome(recompute: Recompute) -> list[torch.Tensor]:
        model = BlockRecurrentModel(config, seed=1, recompute=recompute)
        memory = some_memory(model, 2)
        losses, after = model(tokens, memory, starts, Dropout(0.2, 0, 7, (0, 1)), target)
        return [losses, *fields(after), *gradients(model, losses.sum()).values()]

    for ours, theirs in zip(outcome(recompute), outcome("none"), strict=True):
        assert torch.equal(ours, theirs)


def test_true_and_false_are_older_names() -> None:
    given = {True: "layer", False: "none", "attention": "attention"}
    assert {key: ParallelConfig.model_validate({"recompute": key}).recompute for key in given} == given
    assert ParallelConfig.model_validate_json('{"recompute": true}', strict=True).recompute == "layer"
