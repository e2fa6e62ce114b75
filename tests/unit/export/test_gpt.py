"""Plain Hugging Face GPTs as weights for our models.  transformers made the models in tests/data/gpt and their outputs
(see make.py there)."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from brt_dist.config.schema import ModelConfig
from brt_dist.errors import CheckpointError, PlatformError
from brt_dist.export.load import load_weights
from brt_dist.export.open import open_weights
from brt_dist.model.attention import split_heads
from brt_dist.model.model import BlockRecurrentModel
from brt_dist.parallel.layout import single_process
from launch.cli import brt
from tests.unit.fuzz.bounds import EXAMPLES, altered, damaged, read

GPTS = Path(__file__).parents[2] / "data" / "gpt"
SIZES: dict[str, Any] = {"layers": 2, "width": 16, "heads": 4, "head_dim": 4, "window": 12, "vocab_size": 256}
FFNS: dict[str, Any] = {"gpt2": {"gelu": {"width": 64}}, "llama": {"swiglu": {"width": 24}}}
TOKENS = torch.arange(12).view(1, 12) * 3 % 48  # as in make.py


def model_of(name: str, **changes: Any) -> ModelConfig:
    mixers = {"window": {"positions": "rotary"}, "recurrent": {"layers": [1], "states": 5, "positions": "rotary"}}
    return ModelConfig.model_validate({**SIZES, "mixers": mixers, "ffns": FFNS[name], "dropout": 0.0, **changes})


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    with single_process():
        yield


def load(name: str, **changes: Any) -> tuple[BlockRecurrentModel, dict[str, Tensor]]:
    """Our model of it, and what transformers computes."""
    with open_weights(str(GPTS / name), into=model_of(name, **changes)) as weights:
        model = load_weights(weights)
    with np.load(GPTS / name / "expected.npz") as found:
        return model, {key: torch.from_numpy(found[key]) for key in found.files}


def logits(model: BlockRecurrentModel) -> Tensor:
    with torch.no_grad():
        return model(TOKENS, model.blank_memory(1), torch.ones(1, 1, dtype=torch.bool))[0].transpose(0, 1)


def test_all_but_the_attention_of_a_llama_is_the_same() -> None:
    """Embedding, norms, gated FFNs and logits, through all layers; also those of a recurrent layer."""
    model, expected = load("llama")
    for layer in model.layers:
        torch.nn.init.zeros_(layer.mixer.tokens.merge.weight)
    torch.testing.assert_close(logits(model), expected["logits"], atol=2e-5, rtol=2e-5)
    other, _ = load("llama", logit_scale="vocab")
    for layer in other.layers:
        torch.nn.init.zeros_(layer.mixer.tokens.merge.weight)
    torch.testing.assert_close(logits(other), expected["logits"], atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_ffns_and_maps_of_heads_compute_the_same(name: str) -> None:
    model, expected = load(name)
    layer, x = model.layers[0], expected["x"]
    with torch.no_grad():
        torch.testing.assert_close(layer.ffn(x, None), expected["ffn"], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(layer.mixer.tokens.merge(x), expected["merged"], atol=1e-5, rtol=1e-5)
        keys, values, queries = split_heads(layer.mixer.tokens.projections(layer.mixer.tokens.norm(x)), 3, 4)
    for found, key in ((queries, "q"), (keys, "k"), (values, "v")):
        theirs = expected[key].unflatten(-1, (-1, 4)).permute(1, 2, 0, 3)  # (b, heads, n, E)
        theirs = theirs.repeat_interleave(found.shape[1] // theirs.shape[1], 1)
        if name == "gpt2":  # a LayerNorm divides by the deviation from the mean: another factor for each token
            found, theirs = (torch.nn.functional.normalize(value, dim=-1) for value in (found, theirs))  # noqa: PLW2901
        torch.testing.assert_close(found, theirs, atol=2e-5, rtol=2e-5)


def test_scales_are_those_of_a_transformers_attention_on_average() -> None:
    """Of many hidden states of unit variance: scale * |cos| is as large as the logits q·k/sqrt(E) are."""
    model, _ = load("llama")
    tokens = model.layers[0].mixer.tokens
    x = torch.randn(4000, 1, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        keys, _, queries = split_heads(tokens.projections(tokens.norm(x)), 3, 4)
        typical = queries.square().sum(-1).mean(-1).sqrt() * keys.square().sum(-1).mean(-1).sqrt() / 2
        torch.testing.assert_close(tokens.scale.weight, typical[0], rtol=0.1, atol=0)


def test_states_say_nothing_at_first_and_the_cell_is_that_of_a_new_run() -> None:
    model, _ = load("llama")
    plain, _ = load("llama", mixers={"window": {"positions": "rotary"}})
    torch.testing.assert_close(logits(model), logits(plain))
    new = BlockRecurrentModel(model_of("llama"), seed=0)
    cell, drawn = (dict(found.layers[1].mixer.cell.named_parameters()) for found in (model, new))
    assert len(cell) > 5 and all(torch.equal(cell[name], drawn[name]) for name in cell)
    with open_weights(str(GPTS / "llama"), into=model_of("llama"), seed=1) as weights:
        assert not torch.equal(load_weights(weights).layers[1].mixer.cell.initial_state, drawn["initial_state"])


def test_what_was_taken_is_told() -> None:
    with open_weights(str(GPTS / "gpt2"), into=model_of("gpt2")) as weights:
        lines = (weights.origin or "").splitlines()
    told = {line.split("  ")[1] for line in lines}
    assert "layers.*.mlp.hidden_bias (2)" in told and "layers.*.tokens.projections.weight (1)" in told
    assert any(line.startswith("  new: layers.*.cell.") for line in lines)
    left = [line.removeprefix("  not taken: ") for line in lines if line.startswith("  not taken: ")]
    assert left == [
        "h.*.attn.c_attn.bias (2)",
        "h.*.attn.c_proj.bias (2)",
        "h.*.ln_1.bias (2)",
        "ln_f.bias",
        "wpe.weight",
    ]
    assert sum("differs: " in line for line in lines) == 3


def test_a_smaller_vocabulary_takes_the_first_rows() -> None:
    with (
        open_weights(str(GPTS / "llama")) as whole,
        open_weights(str(GPTS / "llama"), into=model_of("llama", vocab_size=40)) as part,
    ):
        assert torch.equal(part.read("embedding.weight"), whole.read("embedding.weight")[:40])
        assert "the first 40 rows" in (part.origin or "")


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_printed_section_fits(name: str, tmp_path: Path) -> None:
    told = CliRunner().invoke(brt, ["import", str(GPTS / name), "--print-config", "--json"])
    section = json.loads(told.output)["model"]
    with open_weights(str(GPTS / name), into=ModelConfig.model_validate({**section, "vocab_size": 256})) as weights:
        assert "layers.1.cell.initial_state" in weights.shapes
    told = CliRunner().invoke(brt, ["import", str(GPTS / name), "--out", str(tmp_path / "out")])
    assert told.exit_code == 0 and "layers.*.tokens.norm.weight (2)" in told.output, told.output
    with open_weights(str(tmp_path / "out")) as ours:
        assert torch.equal(ours.read("layers.0.tokens.scale.weight"), weights_of(name, "layers.0.tokens.scale.weight"))


def weights_of(name: str, tensor: str) -> Tensor:
    with open_weights(str(GPTS / name)) as weights:
        return weights.read(tensor)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"layers": 3}, "model.layers=3, but the weights have 2"),
        ({"width": 32}, "model.width=32, but the weights have 16"),
        ({"ffns": {"swiglu": {"width": 32}}}, "model.ffns.swiglu.width=32, but the weights have 24"),
        ({"vocab_size": 257}, "tokenizer has 257 tokens, but the weights embed 256"),
    ],
)
def test_other_sizes_are_refused_with_those_that_fit(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(CheckpointError) as told, open_weights(str(GPTS / "llama"), into=model_of("llama", **changes)):
        pass
    assert said in str(told.value) and "llama --print-config` prints the model section" in str(told.value)


def test_kinds_that_a_gpt_does_not_have_are_new() -> None:
    model = model_of("llama", ffns={"relu": {"width": 32}}, mixers={"window": {}, "linear": {"layers": [1]}})
    with open_weights(str(GPTS / "llama"), into=model) as weights:
        told = (weights.origin or "").splitlines()
    assert "  new: layers.*.mlp.hidden.weight (2)" in told and "  not taken: layers.*.mlp.up_proj.weight (2)" in told
    assert "  not taken: layers.*.self_attn.q_proj.weight (1)" in told


def copy(name: str, folder: Path, **changes: Any) -> Path:
    shutil.copytree(GPTS / name, folder, dirs_exist_ok=True)
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, **changes}))
    return folder


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "bert"}, "of type 'bert', which is not supported; supported types: gpt2, llama, mistral"),
        ({"hidden_size": 32}, r"embed_tokens.weight is \(256, 16\), but config.json says \(256, 32\)"),
        ({"num_hidden_layers": 10**7}, "fewer tensors than 10000000 layers have"),
        ({"num_hidden_layers": 3}, "fewer tensors than 3 layers have"),
        ({"intermediate_size": 25}, r"gate_proj.weight is \(24, 16\), but config.json says \(25, 16\)"),
        ({"num_attention_heads": 0}, "heads cannot be 0"),
        ({"hidden_size": "x"}, "not the config of a llama model: hidden_size"),
        ({"num_key_value_heads": 3}, "4 heads cannot share 3"),
        ({"quantization_config": {"bits": 4}}, "quantized weights are not read"),
    ],
)
def test_folders_that_hold_no_such_model(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    folder = copy("llama", tmp_path / "m", **changes)
    with pytest.raises(CheckpointError, match=said), open_weights(str(folder)):
        pass


def test_pickled_weights_are_not_read(tmp_path: Path) -> None:
    folder = copy("gpt2", tmp_path / "m")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pickled weights \(.bin, .pt\) may run code"), open_weights(str(folder)):
        pass


def test_a_name_of_the_hub_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(PlatformError, match="hf://owner/name: not downloaded before"), open_weights("hf://owner/name"):
        pass
    cached = tmp_path / "hub" / "models--owner--name"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("abc")
    copy("llama", cached / "snapshots" / "abc")
    with open_weights("hf://owner/name") as weights:
        assert weights.model.width == 16


def use(folder: Path) -> None:
    with open_weights(str(folder)) as weights:
        for name in weights.shapes:
            weights.read(name)


@pytest.mark.parametrize(
    ("name", "file"), [("gpt2", "model.safetensors"), ("llama", "config.json"), ("gpt2", "config.json")]
)
@given(data=st.data())
@settings(max_examples=EXAMPLES, deadline=None)
def test_a_damaged_folder(name: str, file: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp() / "gpt" / name
    shutil.copytree(GPTS / name, folder, dirs_exist_ok=True)
    content = (GPTS / name / file).read_bytes()
    if file == "config.json" and data.draw(st.booleans()):
        (folder / file).write_text(json.dumps(data.draw(altered(json.loads(content)))))
    else:
        (folder / file).write_bytes(data.draw(damaged(content)))
    read(lambda: use(folder))
