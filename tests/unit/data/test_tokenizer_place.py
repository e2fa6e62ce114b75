"""Tokenizers by file, by folder and by name; the cache of the hub has the layout that huggingface_hub reads."""

from pathlib import Path

import pytest
from huggingface_hub import constants

from brt_dist.data.tokenizers import digest, load_tokenizer, train_bpe
from brt_dist.errors import DataError


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder as models have it."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_bytes(train_bpe(iter(["some text to learn from, some text"]), 270))
    return folder


def test_a_folder_of_a_model_is_a_tokenizer(model: Path) -> None:
    assert digest(load_tokenizer(model)) == digest(load_tokenizer(model / "tokenizer.json"))
    (model / "tokenizer.json").unlink()
    with pytest.raises(DataError, match=r"no tokenizer in this folder \(tokenizer.json, "):
        load_tokenizer(model)


def test_a_name_on_the_hub_is_found_without_a_network(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = tmp_path / "hub" / "models--owner--name"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("abc")
    (cached / "snapshots").mkdir()
    model.rename(cached / "snapshots" / "abc")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    found = load_tokenizer(Path("owner/name"))
    assert found.file == (cached / "snapshots" / "abc" / "tokenizer.json").read_bytes()
    with pytest.raises(DataError, match="owner/other: no such file, and no tokenizer of that name on Hugging"):
        load_tokenizer(Path("owner/other"))
    with pytest.raises(DataError, match="No such file"):
        load_tokenizer(Path("a/path/that/is/none.json"))
