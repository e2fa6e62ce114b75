"""Weights out and in: nothing changes on the way, and nothing that does not fit comes in."""

import json
import os
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from brt_dist.config.loading import load
from brt_dist.errors import DataError
from brt_dist.export.load import load_model
from brt_dist.export.open import open_weights
from brt_dist.kinds import WEIGHT_FORMATS
from brt_dist.model.model import full_logits
from brt_dist.parallel.layout import single_process
from brt_dist.training.initial_weights import check_initial_weights
from launch.cli import main
from tests.golden.check import compare

GOLDEN = Path(__file__).parents[2] / "golden" / "data"
FILES = sorted(path for path in GOLDEN.glob("*.npz"))


@pytest.fixture(scope="module", autouse=True)
def world() -> Iterator[None]:
    with single_process():
        yield


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("imported") / "model"
    assert run("import", GOLDEN / "fixed_skip.npz", "--out", out) == 0
    return out


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as end:
        main(list(map(str, arguments)))
    assert isinstance(end.value.code, int)
    return end.value.code


def arrays(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    with np.load(path) as found:
        return {name: found[name] for name in found.files if name.startswith("param/")}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_reference_weights_come_out_as_they_went_in(path: Path, tmp_path: Path) -> None:
    assert run("import", path, "--out", tmp_path / "ours") == 0
    assert run("export", tmp_path / "ours", "--to", "reference", "--out", tmp_path / "theirs") == 0
    before, after = arrays(path), arrays(tmp_path / "theirs" / "model.npz")
    assert before.keys() == after.keys()
    for name, values in before.items():
        assert values.dtype == after[name].dtype and values.tobytes() == after[name].tobytes(), name
    # the settings beside it describe the same network
    merged = dict(np.load(path)) | after
    np.savez(tmp_path / "merged.npz", **merged)
    (tmp_path / "merged.json").write_text((tmp_path / "theirs" / "model.json").read_text())
    assert compare(tmp_path / "merged.npz").ok


def test_every_form_holds_the_same(imported: Path, tmp_path: Path) -> None:
    source = imported
    for number, kind in enumerate(("hf", "safetensors", "reference", "hf")):
        out = tmp_path / f"{number}"
        assert run("export", source, "--to", kind, "--out", out) == 0
        source = out / "model.npz" if kind == "reference" else out
    one, other = load_file(imported / "model.safetensors"), load_file(source / "model.safetensors")
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_shards_and_their_index(imported: Path, tmp_path: Path) -> None:
    out = tmp_path / "hf"
    assert run("export", imported, "--to", "hf", "--out", out, "--shard-size", "100KB") == 0
    index = json.loads((out / "model.safetensors.index.json").read_text())
    shards = sorted(set(index["weight_map"].values()))
    assert len(shards) > 2 and shards == sorted(path.name for path in out.glob("*.safetensors"))
    whole = load_file(imported / "model.safetensors")
    assert index["metadata"]["total_size"] == sum(value.numel() * 4 for value in whole.values())
    for name, value in whole.items():
        assert torch.equal(load_file(out / index["weight_map"][name])[name], value)
    card = (out / "README.md").read_text()
    assert f"| parameters | {sum(value.numel() for value in whole.values()):,} |" in card
    assert json.loads((out / "config.json").read_text())["heads"] == 4


def test_the_card_says_how_it_is_loaded(imported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("export", imported, "--to", "hf", "--out", tmp_path / "hf") == 0
    theirs, ours = (
        block.split("```")[0] for block in (tmp_path / "hf" / "README.md").read_text().split("```python\n")[1:]
    )
    assert "trust_remote_code=True" in theirs  # run in tests/end_to_end/test_transformers.py
    with pytest.raises(DataError, match="has no tokenizer"):  # the reference's weights come without one
        exec(ours.replace("FOLDER", str(tmp_path / "hf")), {})


def test_a_loaded_model_computes_what_the_reference_does(imported: Path) -> None:
    with np.load(GOLDEN / "fixed_skip.npz") as golden:
        tokens, expected = torch.from_numpy(golden["seg0/input_tokens"]).long(), torch.from_numpy(golden["seg0/logits"])
    model = load_model(str(imported))
    starts = torch.zeros(2, tokens.shape[1] // 16, dtype=torch.bool)
    starts[:, 0] = True
    with torch.no_grad():
        logits, _ = model(tokens % 101, model.blank_memory(2), starts)
    torch.testing.assert_close(full_logits(logits, 101), expected, rtol=0, atol=1e-5)


def refused(capsys: pytest.CaptureFixture[str], source: Path, out: Path) -> str:
    assert run("import", source, "--out", out) == 12
    assert not out.exists(), "nothing is left of it"
    return capsys.readouterr().err


def test_a_damaged_folder_is_refused(imported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import shutil

    def changed(name: str) -> Path:
        return Path(shutil.copytree(imported, tmp_path / name))

    out = tmp_path / "out"
    flipped = changed("flipped") / "model.safetensors"
    content = bytearray(flipped.read_bytes())
    content[-1] ^= 1
    flipped.write_bytes(content)
    assert "was altered" in refused(capsys, flipped.parent, out)
    cut = changed("cut") / "model.safetensors"
    os.truncate(cut, 1000)
    assert "has 1000 bytes" in refused(capsys, cut.parent, out)
    for name, edit, says in (
        (
            "leads",
            lambda about: about["files"][0].update(name="../../x.safetensors"),
            "not a valid name of a tensor file",
        ),
        ("huge", lambda about: about["tensors"]["embedding.weight"].update(shape=[1 << 40, 48]), " exceed its "),
        ("newer", lambda about: about.update(format=9), "format 9"),
    ):
        path = changed(name) / "config.json"
        values = json.loads(path.read_text())
        edit(values["brt_dist"])
        path.write_text(json.dumps(values))
        assert says in refused(capsys, path.parent, out)
    path = changed("wider") / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"width": 1 << 40}))
    assert "the model needs" in refused(capsys, path.parent, out)


def with_array(path: Path, content: bytes) -> Path:
    """The golden file with `content` in the place of the token embedding."""
    target = "param/embed/embedding.npy"
    with zipfile.ZipFile(GOLDEN / "fixed_skip.npz") as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            new.writestr(name, content if name == target else old.read(name))
    path.with_suffix(".json").write_text((GOLDEN / "fixed_skip.json").read_text())
    return path


def test_an_npz_with_code_or_false_claims_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mark = tmp_path / "ran"

    class Bomb:
        def __reduce__(self) -> Any:
            return Path.touch, (mark,)

    code, huge = BytesIO(), BytesIO()
    np.save(code, np.array([Bomb()], dtype=object), allow_pickle=True)
    np.lib.format.write_array_header_1_0(huge, {"descr": "<f4", "fortran_order": False, "shape": (1 << 40, 48)})
    out = tmp_path / "out"
    assert "is object (1,), but the model needs float32" in refused(
        capsys, with_array(tmp_path / "a.npz", code.getvalue()), out
    )
    assert not mark.exists()
    assert "(1099511627776, 48), but the model needs" in refused(
        capsys, with_array(tmp_path / "b.npz", huge.getvalue()), out
    )
    assert "not a readable .npz" in refused(capsys, with_array(tmp_path / "c.npz", b"\x93NUMPY"), out)


def test_mistakes_are_one_message(imported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "alone.npz").write_bytes((GOLDEN / "fixed_skip.npz").read_bytes())
    assert "an .npz file needs a .json file" in refused(capsys, tmp_path / "alone.npz", tmp_path / "out")
    assert "does not exist" in refused(capsys, tmp_path / "none", tmp_path / "out")
    assert run("export", imported, "--to", "hf", "--out", imported) == 18
    assert "is not empty; nearest: --out" in capsys.readouterr().err
    rotary = tmp_path / "rotary"
    with open_weights(str(imported)) as weights:
        from dataclasses import replace

        model = weights.model.changed({f"mixers.{name}.positions": "rotary" for name in weights.model.mixers})
        shapes = {name: shape for name, shape in weights.shapes.items() if "positions" not in name}
        WEIGHT_FORMATS["safetensors"].write(replace(weights, model=model, shapes=shapes), rotary)
    assert run("export", rotary, "--to", "reference", "--out", tmp_path / "r") == 12
    assert "no positions=rotary; nearest: `brt export --to safetensors`" in capsys.readouterr().err


def test_weights_that_do_not_fit_are_told_before_anything_starts(
    imported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.txt").write_text("A few words. " * 400)
    build = ["data", "build", tmp_path / "text.txt", "--out", tmp_path / "data"]
    assert run(*build, "--tokenizer", "bytes", "--workers", "0") == 0
    settings = [f"data.dataset={tmp_path / 'data'}", f"run.directory={tmp_path / 'run'}", "run.steps=1"]
    network = ["model.layers=2", "model.width=16", "model.heads=2", "model.head_dim=8", "model.window=8"]
    settings += [*network, "model.states=8", "data.segment=16", "data.streams=1", "run.device=cpu"]
    settings += ["model.recurrent_layers=[-1]", "optimizer.warmup_steps=1"]
    for source, said in ((imported, "model.heads: 4 in the run, 2 now"), (tmp_path / "none", "does not exist")):
        capsys.readouterr()
        assert run("train", *settings, f"run.init_from={source}") == 12
        error = capsys.readouterr().err
        assert said in error and "Traceback" not in error and "starting Ray" not in error
        assert not (tmp_path / "run" / "attempts").exists()
    with open_weights(str(imported)) as weights:
        config = load([], [*settings, f"run.init_from={imported}"]).config
        check_initial_weights(str(imported), config.model_copy(update={"model": weights.model}), "any")
