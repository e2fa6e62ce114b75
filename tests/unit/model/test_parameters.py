"""Parameters: counts, names, initial values, parts."""

import json
import math
from pathlib import Path

import pytest
import torch

from brt_dist.config.loading import load as load_config
from brt_dist.errors import CheckpointError
from brt_dist.model.model import BlockRecurrentModel
from brt_dist.model.parameters import initialize, load, logical_parameters
from tests.unit.model.networks import ALL_CELLS, built, small

SIZES = Path(__file__).parents[3] / "examples" / "sizes"
XL: dict[str, object] = {"mixers.recurrent.layers": ()}
BODIES = [  # millions of parameters without the token embedding, from the reference implementation
    *(
        row
        for size, xl, more, recurrent in [
            ("37M", 37.76, 40.91, 40.39),
            ("75M", 75.51, 81.81, 80.23),
            ("150M", 151.02, 163.61, 160.46),
            ("300M", 302.02, 327.19, 319.85),
            ("600M", 604.04, 654.37, 639.69),
            ("1.2B", 1208.02, 1308.69, 1277.23),
        ]
        for row in [(size, XL, xl), (size, XL | {"layers": 13}, more), (size, {}, recurrent)]
    ),
    ("150M", {"mixers.recurrent.cell": "single"}, 170.95),
    ("150M", {"mixers.recurrent.cell": "dual"}, 168.85),
    ("150M", {"mixers.recurrent.gate": "lstm"}, 164.66),
    ("150M", {"mixers.recurrent.gate": "lstm", "mixers.recurrent.cell": "single"}, 179.34),
    ("150M", {"mixers.recurrent.gate": "lstm", "mixers.recurrent.cell": "dual"}, 181.44),
    ("150M", {"feedback": True}, 183.53),
    ("150M", {"feedback": True, "mixers.recurrent.gate": "lstm", "mixers.recurrent.cell": "single"}, 202.41),
    ("1.3B-24L", {}, 1279.4),
    ("1.3B-24L", XL | {"layers": 26}, 1308.7),
    ("150M", {"layers": 24, "mixers.recurrent.layers": (9, 19)}, 320.9),
]


@pytest.mark.parametrize(("size", "changes", "millions"), BODIES)
def test_parameter_counts_of_the_published_sizes(size: str, changes: dict[str, object], millions: float) -> None:
    settings = ["data.dataset=books", "run.directory=run", "run.steps=1", "model.vocab_size=32001"]
    settings += [f"model.{key}={json.dumps(value)}" for key, value in changes.items()]
    config = load_config(SIZES / f"{size}.yaml", settings).config.model
    with torch.device("meta"):
        model = BlockRecurrentModel(config)
    total = sum(parameter.size for parameter in logical_parameters(model))
    digits = len(str(millions).split(".")[1])
    assert round((total - 32001 * config.width) / 1e6, digits) == millions


def test_every_size_is_counted() -> None:
    assert {path.stem for path in SIZES.glob("*.yaml")} == {size for size, _, _ in BODIES}


def test_initial_values_have_the_published_distributions() -> None:
    config = small(width=256, heads=4, head_dim=32, mlp_width=512, vocab_size=1000, states=64, gate="lstm", cell="dual")
    model = BlockRecurrentModel(config, seed=3)
    attention, mlp = 1 / math.sqrt(256), 1 / math.sqrt(512)
    expected = {
        "embedding.weight": 1.0,
        "layers.1.tokens.projections.weight": attention,
        "layers.1.tokens.merge.weight": 1 / math.sqrt(2 * 4 * 32),
        "layers.0.tokens.merge.weight": 1 / math.sqrt(4 * 32),
        "layers.1.tokens.positions.weight": 1 / math.sqrt(32),
        "layers.1.mlp.hidden.weight": attention,
        "layers.1.mlp.output.weight": mlp,
        "layers.1.cell.initial_state": 0.1,
        "layers.1.cell.identities": 1.0,
        "layers.1.cell.projections.weight": attention,
        "layers.1.cell.tail.attention_update.output.weight": 1 / math.sqrt(2 * 4 * 32),
        "layers.1.cell.tail.attention_update.gate.kernels.weight": math.sqrt(0.1 / (2 * 4 * 32)),
        "layers.1.cell.tail.attention_update.gate.input_bias": 0.1,
        "layers.1.cell.tail.update.gate.kernels.weight": math.sqrt(0.1 / 512),
    }
    parameters = {parameter.name: parameter.local.detach() for parameter in logical_parameters(model)}
    for name, std in expected.items():
        values = parameters[name]
        spread = std / math.sqrt(values.numel())
        assert abs(values.mean().item()) < 5 * spread, name
        assert abs(values.std().item() - std) < 5 * spread, name
    for name, values in parameters.items():
        if "norm" in name or "scale" in name:
            assert torch.equal(values, torch.ones_like(values)), name
    cut = attention / 0.87962566103423978 * 2
    assert parameters["layers.1.mlp.hidden.weight"].abs().max() <= cut
    assert parameters["layers.1.mlp.hidden.weight"].abs().max() > 0.95 * cut


def test_initial_values_depend_on_seed_and_name_only() -> None:
    config = small()
    torch.manual_seed(1)
    first = BlockRecurrentModel(config, seed=1)
    torch.manual_seed(2)
    again, other = BlockRecurrentModel(config, seed=1), BlockRecurrentModel(config, seed=2)
    before = torch.get_rng_state()
    initialize(again, 1)
    assert torch.equal(torch.get_rng_state(), before)
    for a, b in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(first.embedding.weight, other.embedding.weight)
    hidden = [layer.ffn.hidden.weight for layer in first.layers]
    assert not torch.equal(hidden[0], hidden[1])

    # a stage of a pipeline has the layer under another name in its own tree, and says which it is
    stage = BlockRecurrentModel(config).layers[2]
    initialize(stage, 1, prefix="layers.2")
    for a, b in zip(stage.parameters(), first.layers[2].parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(("cell", "gate"), ALL_CELLS)
def test_parts_of_all_ranks_make_the_whole(cell: str, gate: str) -> None:
    model = built(small(cell=cell, gate=gate, heads=4, mlp_width=16))
    names = set()
    for parameter in logical_parameters(model):
        names.add(parameter.name)
        full = torch.randn(parameter.shape)
        for ranks in (1, 2, 4):
            parts = [parameter.part(full, rank, ranks) for rank in range(ranks)]
            assert len({part.shape for part in parts}) == 1
            assert torch.equal(parameter.whole(parts), full)
            assert parameter.local.tensor_model_parallel == (parameter.partition_dim is not None)
            if parameter.partition_dim is not None:
                assert parameter.local.partition_dim == parameter.partition_dim
                assert parameter.local.partition_stride == 1
        if parameter.name == "embedding.weight":
            assert parts[-1].shape == (8, 10)
            assert torch.count_nonzero(torch.cat(parts)[23:]) == 0
    assert len(names) == len(list(model.parameters()))


def test_wrong_tensors_are_not_loaded() -> None:
    model = built(small())
    tensors = {parameter.name: parameter.whole([parameter.local.detach()]) for parameter in logical_parameters(model)}
    load(built(small(), seed=5), tensors)
    with pytest.raises(CheckpointError, match=r"final_norm.weight is missing"):
        load(model, {name: tensor for name, tensor in tensors.items() if name != "final_norm.weight"})
    with pytest.raises(CheckpointError, match=r"final_norm.weight is of shape \(9,\): expected shape \(10,\)"):
        load(model, {**tensors, "final_norm.weight": torch.zeros(9)})
