"""What comparisons of models are made of: equal sizes, and losses by position in the document."""

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.models import mlp_width, parameter_count, with_parameters
from benchmarks.positions import profile
from brt_dist.config.schema import Config
from brt_dist.data.dataset import Dataset
from brt_dist.evaluation.positions import doubling
from brt_dist.model.model import BlockRecurrentModel, full_logits
from tests.datasets import make_dataset

TEXTS = ("a" * 3 + "bc" * 21, "to be or not to be " * 5, "x", "the rest is silence")
WINDOW = 4


def config(**model: object) -> Config:
    shape = {
        "layers": 2, "width": 16, "heads": 2, "head_dim": 8, "mlp_width": 24, "vocab_size": 256, "window": WINDOW,
        "states": 3, "recurrent_layers": (0,), "dropout": 0.0,
    }  # fmt: skip
    return Config.model_validate(
        {
            "model": shape | model,
            "data": {"dataset": "none", "segment": 2 * WINDOW, "streams": 3},
            "run": {"directory": "none", "steps": 1},
        }
    )


def test_bins_double() -> None:
    assert doubling(32, 33) == (0, 32)
    assert doubling(32, 32) == (0,)
    assert doubling(32, 300) == (0, 32, 64, 128, 256)


@pytest.mark.parametrize("model", [{}, {"recurrent_layers": ()}], ids=["recurrent", "window"])
def test_losses_by_position_are_those_of_each_document_alone(model: dict[str, object], tmp_path: Path) -> None:
    make_dataset(tmp_path, TEXTS)
    dataset = Dataset.open(tmp_path / "dataset")
    given = config(**model, vocab_size=dataset.vocab_size)
    network, edges = BlockRecurrentModel(given.model, seed=1), doubling(WINDOW, max(map(len, TEXTS)))
    found = profile(network, given, dataset, edges)

    bits, tokens = np.zeros((len(TEXTS), len(edges))), np.zeros((len(TEXTS), len(edges)))
    for number, length in enumerate(dataset.lengths.tolist()):
        ids = torch.zeros(1, -(-length // WINDOW) * WINDOW, dtype=torch.int64)
        ids[0, :length] = torch.from_numpy(dataset.tokens(number, 0, length).astype(np.int64))
        starts = torch.zeros(1, ids.shape[1] // WINDOW, dtype=torch.bool)
        starts[0, 0] = True
        logits, _ = network(ids, network.blank_memory(1), starts)
        scores = torch.log_softmax(full_logits(logits, dataset.vocab_size)[0].double(), -1)
        for position in range(length - 1):
            place = max(i for i, edge in enumerate(edges) if edge <= position)
            bits[number, place] -= float(scores[position, ids[0, position + 1]]) / np.log(2)
            tokens[number, place] += 1

    assert np.array_equal(found.tokens, tokens)
    assert found.bits == pytest.approx(bits, abs=1e-3)
    assert found.mean == pytest.approx(bits.sum() / tokens.sum(), rel=1e-5)


def test_another_kind_of_model_gets_the_same_size() -> None:
    recurrent = config(width=32).model
    plain = with_parameters(recurrent.changed({"mixers.recurrent.layers": ()}), parameter_count(recurrent))
    assert mlp_width(plain) > mlp_width(recurrent)
    assert abs(parameter_count(plain) - parameter_count(recurrent)) <= plain.layers * plain.width
    with pytest.raises(ValueError, match="too few"):
        with_parameters(recurrent, 100)
