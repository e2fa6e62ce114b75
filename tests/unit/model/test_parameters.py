"""Parameters: counts, names, initial values, parts."""

import math

import pytest
import torch

from brt_dist.config.schema import ModelConfig
from brt_dist.errors import CheckpointError
from brt_dist.model.model import BlockRecurrentModel
from brt_dist.model.parameters import initialize, load, logical_parameters
from tests.unit.model.networks import ALL_CELLS, built, small

SIZES = {  # layers, width, heads, head_dim, mlp_width
    "37M": (12, 512, 8, 64, 2048),
    "75M": (12, 512, 8, 128, 4096),
    "150M": (12, 1024, 8, 128, 4096),
    "300M": (12, 1024, 16, 128, 8192),
    "600M": (12, 2048, 16, 128, 8192),
    "1.2B": (12, 2048, 32, 128, 16384),
}
BODIES = [  # millions of parameters without the token table, from the reference implementation
    ("37M", {"recurrent_layers": ()}, 37.76),
    ("75M", {"recurrent_layers": ()}, 75.51),
    ("150M", {"recurrent_layers": ()}, 151.02),
    ("300M", {"recurrent_layers": ()}, 302.02),
    ("600M", {"recurrent_layers": ()}, 604.04),
    ("1.2B", {"recurrent_layers": ()}, 1208.02),
    ("37M", {"recurrent_layers": (), "layers": 13}, 40.91),
    ("150M", {"recurrent_layers": (), "layers": 13}, 163.61),
    ("600M", {"recurrent_layers": (), "layers": 13}, 654.37),
    ("37M", {}, 40.39),
    ("75M", {}, 80.23),
    ("150M", {}, 160.46),
    ("300M", {}, 319.85),
    ("600M", {}, 639.69),
    ("1.2B", {}, 1277.23),
    ("150M", {"cell": "single"}, 170.95),
    ("150M", {"cell": "dual"}, 168.85),
    ("150M", {"gate": "lstm"}, 164.66),
    ("150M", {"gate": "lstm", "cell": "single"}, 179.34),
    ("150M", {"gate": "lstm", "cell": "dual"}, 181.44),
    ("600M", {"layers": 24, "recurrent_layers": (9, 19)}, 1279.4),
    ("600M", {"layers": 26, "recurrent_layers": ()}, 1308.7),
]


@pytest.mark.parametrize(("size", "changes", "millions"), BODIES)
def test_parameter_counts_of_the_published_sizes(size: str, changes: dict[str, object], millions: float) -> None:
    layers, width, heads, head_dim, mlp_width = SIZES[size]
    sizes = dict(layers=layers, width=width, heads=heads, head_dim=head_dim, mlp_width=mlp_width, vocab_size=32001)
    with torch.device("meta"):
        model = BlockRecurrentModel(ModelConfig(**{**sizes, **changes}))
    total = sum(parameter.size for parameter in logical_parameters(model))
    digits = len(str(millions).split(".")[1])
    assert round((total - 32001 * width) / 1e6, digits) == millions


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
    hidden = [layer.mlp.hidden.weight for layer in first.layers]
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
