"""Duplicates and a split by text: what is taken, whatever else is in the corpus and however the build goes."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from brt_dist.data.dataset import Dataset
from brt_dist.data.tokenizers import load_tokenizer
from brt_dist.errors import DataError
from launch.cli import brt
from pipelines.build import BuildSettings, build
from pipelines.selection import Split
from pipelines.sources import DUPLICATE

TEXTS = [f"text number {n % 30}, " * (2 + n % 30) for n in range(100)]  # thirty different ones


def corpus(folder: Path, texts: list[str]) -> Path:
    """Half of them as JSONL, half as text files."""
    folder.mkdir(parents=True)
    half = len(texts) // 2
    lines = [json.dumps({"text": text}) for text in texts[:half]]
    (folder / "a.jsonl").write_text("".join(line + "\n" for line in lines))
    for number, text in enumerate(texts[half:]):
        (folder / f"b{number:03d}.txt").write_text(text)
    return folder


def texts_of(folder: Path) -> list[str]:
    with Dataset.open(folder) as dataset:
        tokenizer = load_tokenizer(dataset.tokenizer)
        return [tokenizer.decode(dataset.tokens(k, 0, dataset.length(k))) for k in range(dataset.documents)]


def files_of(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir() if path.name[0] != "."
    }


@pytest.fixture
def settings(tmp_path: Path) -> BuildSettings:
    return BuildSettings((str(corpus(tmp_path / "corpus", TEXTS)),), "bytes", shard_size=1000)


def test_of_equal_documents_the_first_is_taken(tmp_path: Path, settings: BuildSettings) -> None:
    report = build(replace(settings, deduplicate=True), tmp_path / "out", workers=0)
    assert texts_of(tmp_path / "out") == list(dict.fromkeys(TEXTS))
    (source,) = report.dataset.sources
    assert source.skipped == {DUPLICATE: 70} and len(report.dataset.shards) > 5
    assert not list((tmp_path / "out").glob("hashes-*"))


def test_a_build_without_duplicates_is_kept_and_goes_on_to_the_same_bytes(
    tmp_path: Path, settings: BuildSettings
) -> None:
    """Also where it was stopped between its two passes, or in the second."""
    wanted = replace(settings, deduplicate=True)
    build(wanted, tmp_path / "whole", workers=0)
    truth = files_of(tmp_path / "whole")
    assert build(wanted, tmp_path / "whole", workers=0).written_shards == 0
    for left in (0, 3):
        folder = tmp_path / f"from {left}"
        build(wanted, folder, workers=0)
        (folder / "dataset.json").unlink()
        for path in sorted(folder.glob("shard-*"))[2 * left :]:
            path.unlink()
        build(wanted, folder, workers=0)
        assert files_of(folder) == truth


def test_an_ordinary_build_is_not_a_build_without_duplicates(tmp_path: Path, settings: BuildSettings) -> None:
    build(settings, tmp_path / "out", workers=0)
    assert texts_of(tmp_path / "out") == TEXTS
    with pytest.raises(DataError, match="deduplicate"):
        build(replace(settings, deduplicate=True), tmp_path / "out", workers=0)


def test_the_two_sides_of_a_split_are_the_corpus(tmp_path: Path, settings: BuildSettings) -> None:
    command = ["data", "build", *settings.sources, "--out", str(tmp_path / "out"), "--tokenizer", "bpe:270"]
    done = CliRunner().invoke(brt, [*command, "--workers", "0", "--validation-share", "0.2", "--json"])
    assert done.exit_code == 0, done.output
    train, held_out = (texts_of(tmp_path / "out" / side) for side in ("train", "validation"))
    assert sorted(train + held_out) == sorted(TEXTS)
    assert not set(train) & set(held_out)
    made = json.loads(done.stdout)
    assert made["train"]["documents"] == len(train) and made["validation"]["documents"] == len(held_out)
    assert made["train"]["tokenizer_sha256"] == made["validation"]["tokenizer_sha256"]


@given(st.lists(st.text(min_size=1), min_size=1, max_size=20), st.floats(0.01, 0.99))
def test_a_document_is_on_one_side(texts: list[str], share: float) -> None:
    for text in texts:
        assert Split(share, "train").takes(text) != Split(share, "validation").takes(text)
        # a larger share only adds to what is held out
        if Split(share, "validation").takes(text):
            assert Split(min(share * 1.5, 1.0), "validation").takes(text)


def test_the_share_is_about_what_was_asked_for() -> None:
    taken = sum(Split(0.1, "validation").takes(f"document {n}") for n in range(10_000))
    assert 900 < taken < 1100  # five standard deviations are 150; the texts are always these


def test_a_side_with_nothing_on_it(tmp_path: Path) -> None:
    folder = corpus(tmp_path / "corpus", ["one"])
    one = BuildSettings((str(folder),), "bytes", split=Split(1e-9, "validation"))
    with pytest.raises(DataError, match="give a larger --validation-share"):
        build(one, tmp_path / "out", workers=0)
