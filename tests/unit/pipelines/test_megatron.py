"""Megatron's tokens as a dataset: files that megatron-core's own builder writes, and damaged ones."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder

from brt_dist.data.dataset import Dataset
from brt_dist.data.inspect import describe_document
from brt_dist.data.tokenizers import load_tokenizer
from brt_dist.errors import BrtError, DataError
from launch.cli import brt
from pipelines.foreign import TokenFiles, index_files
from pipelines.megatron import read_index
from pipelines.verify import verify
from tests.datasets import make_dataset
from tests.unit.fuzz.bounds import EXAMPLES, LARGE, damaged, large, read

TEXTS = [f"{word} and again {word} — ünïcode\n" * (1 + 3 * n) for n, word in enumerate(["one", "two", "three", "four"])]


def write(path: Path, documents: list[list[list[int]]], dtype: Any = np.uint16, modes: list[int] | None = None) -> Path:
    """Documents of sequences of ids, written by megatron-core."""
    builder = IndexedDatasetBuilder(str(path.with_suffix(".bin")), dtype=dtype, multimodal=modes is not None)
    number = 0
    for document in documents:
        for sequence in document:
            builder.add_item(torch.tensor(sequence), 0 if modes is None else modes[number])
            number += 1
        builder.end_document()
    builder.finalize(str(path.with_suffix(".idx")))
    return path.with_suffix(".bin")


@pytest.mark.parametrize(("dtype", "kind"), [(np.uint16, "uint16"), (np.int32, "uint32"), (np.int16, "uint16")])
def test_the_dataset_is_that_of_the_text(dtype: Any, kind: str, tmp_path: Path) -> None:
    built = make_dataset(tmp_path, TEXTS, tokenizer="bpe:300")
    tokenizer = load_tokenizer(built.folder)
    ids = [tokenizer.encode(text).tolist() for text in TEXTS]
    # a document of one sequence, of several, and of one that a writer left empty
    path = write(tmp_path / "x", [[ids[0]], [ids[1][:3], ids[1][3:]], [], [ids[2], []], [ids[3]]], dtype)
    record = index_files([path], tmp_path / "indexed", built.folder)
    assert (tmp_path / "indexed" / "shard-000000.bin").resolve() == path, "nothing is copied"
    assert verify(tmp_path / "indexed")[1] == [] and record.dtype == kind
    assert record.sources[0].skipped == {"empty": 1}
    assert record.tokenizer == built.dataset.tokenizer and record.text_bytes == built.dataset.text_bytes
    theirs = IndexedDataset(str(tmp_path / "x"), multimodal=False)
    with Dataset.open(built.folder) as one, Dataset.open(tmp_path / "indexed") as two:
        assert one.lengths.tolist() == two.lengths.tolist()
        for document, length in enumerate(one.lengths):
            assert np.array_equal(one.tokens(document, 0, int(length)), two.tokens(document, 0, int(length)))
        assert describe_document(two, 3, 10_000)["text"] == TEXTS[3]
        assert describe_document(two, 3, 10)["source"] == "x.bin"
        assert sum(len(sequence) for sequence in theirs) == two.lengths.sum()


@pytest.mark.parametrize("modes", [None, [0, 0, 0]])
def test_places_are_those_of_megatrons_reader(modes: list[int] | None, tmp_path: Path) -> None:
    path = write(tmp_path / "x", [[[1, 2, 3]], [[4], [5, 6]]], modes=modes)
    theirs, ours = IndexedDataset(str(tmp_path / "x"), multimodal=modes is not None), read_index(path)
    first = theirs.document_indices[:-1]
    assert ours.offsets.tolist() == theirs.index.sequence_pointers[first].tolist() == [0, 6]
    assert ours.tokens.tolist() == [3, 3]


@pytest.mark.parametrize("given", ["x", "x.bin", "x.idx"])
def test_each_of_its_names_is_taken(given: str, tmp_path: Path) -> None:
    write(tmp_path / "x", [[[1, 2, 3]]])
    tokenizer = make_dataset(tmp_path / "t", ["a"]).folder
    assert index_files([tmp_path / given], tmp_path / "out", tokenizer).tokens == 3


def test_the_id_that_ends_documents_is_told_and_left_out(tmp_path: Path) -> None:
    path = write(tmp_path / "x", [[[1, 2, 9]], [[3, 9]], [[9]]])
    tokenizer = make_dataset(tmp_path / "t", ["a"]).folder
    notes: list[str] = []
    assert index_files([path], tmp_path / "a", tokenizer, note=notes.append).tokens == 6
    assert notes == ["x.bin: every document ends with id 9; if it only marks the end, --end-token 9 leaves it out"]
    record = index_files([path], tmp_path / "b", tokenizer, TokenFiles(end_token=9))
    assert (record.documents, record.tokens, record.sources[0].skipped) == (2, 3, {"empty": 1})
    with pytest.raises(DataError, match="no document ends with id 8; most often they end with 9"):
        index_files([path], tmp_path / "c", tokenizer, TokenFiles(end_token=8))


def altered_index(path: Path, at: int, data: bytes) -> None:
    index = path.with_suffix(".idx")
    content = bytearray(index.read_bytes())
    content[at : at + len(data)] = data
    index.write_bytes(content)


@pytest.mark.parametrize(
    ("at", "data", "said"),
    [
        (0, b"TNTIDX\x00\x00", "old format"),
        (0, b"x", "not an index of Megatron"),
        (9, struct.pack("<Q", 2), "version 2 of Megatron's index"),
        (17, b"\x01", "its ids are uint8; uint16 and int32"),
        (17, b"\x63", "its ids are of type 99"),
        (18, struct.pack("<Q", 2**60), "its header says"),
        (34, struct.pack("<i", -2), "the sequences do not follow"),
        (42, struct.pack("<q", 8), "the sequences do not follow"),
        (58, struct.pack("<q", 1), "the documents do not follow"),
        (66, struct.pack("<q", 7), "the documents do not follow"),
    ],
)
def test_what_is_no_such_index_is_told(at: int, data: bytes, said: str, tmp_path: Path) -> None:
    path = write(tmp_path / "x", [[[1, 2, 3]], [[4]]])
    altered_index(path, at, data)
    with pytest.raises(DataError, match=said):
        read_index(path)


def test_files_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "x", [[[1, 2, 3]], [[4]]])
    wide = write(tmp_path / "y", [[[1]]], np.int32)
    tokenizer = make_dataset(tmp_path / "t", ["a"]).folder
    with pytest.raises(DataError, match="of different types"):
        index_files([path, wide], tmp_path / "out", tokenizer)
    with pytest.raises(DataError, match="its ids are uint16, not uint32"):
        index_files([path], tmp_path / "out", tokenizer, TokenFiles(dtype="uint32"))
    with pytest.raises(DataError, match="id 300 is outside the tokenizer's vocabulary of 256; another --tokenizer"):
        index_files([write(tmp_path / "z", [[[300]]])], tmp_path / "out", tokenizer)
    with pytest.raises(DataError, match="multimodal: sequence 1 is not text"):
        read_index(write(tmp_path / "m", [[[1]], [[2]]], modes=[0, 1]))
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(DataError, match=r"x\.bin has 6 bytes, but the index says 8"):
        read_index(path)
    path.with_suffix(".idx").unlink()
    with pytest.raises(DataError, match=r"which are \.bin and \.idx: No such file"):
        read_index(path)
    assert not (tmp_path / "out").exists()


@given(data=st.data())
@settings(max_examples=10 * EXAMPLES, deadline=None)
def test_a_damaged_index(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp() / "megatron"
    folder.mkdir(exist_ok=True)
    path = write(folder / "x", [[[1, 2, 3]], [[4], [5, 6]]], modes=[0, 0, 0] if data.draw(st.booleans()) else None)
    index = path.with_suffix(".idx")
    index.write_bytes(data.draw(damaged(index.read_bytes())))

    def use() -> None:
        found = read_index(path)
        ends = found.offsets + found.tokens * np.dtype(found.dtype).itemsize
        assert (found.offsets >= 0).all() and (ends <= path.stat().st_size).all()

    read(use)


@pytest.mark.parametrize("name", ["x.idx", "x.bin"])
@pytest.mark.parametrize("kind", LARGE)
def test_a_large_file_that_is_none(kind: str, name: str, tmp_path: Path) -> None:
    path = write(tmp_path / "x", [[[1, 2, 3]]])
    (tmp_path / name).write_bytes(large(kind))
    assert isinstance(read(lambda: read_index(path)), BrtError)


def test_the_command(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "x", [[[104, 105]], [[]]])
    tokenizer = make_dataset(tmp_path / "t", ["a"]).folder
    told = ["data", "index", tmp_path / "x", "--out", tmp_path / "out", "--tokenizer", tokenizer, "--json"]
    brt.main(args=[str(item) for item in told], prog_name="brt", standalone_mode=False)
    out, error = capfd.readouterr()
    assert json.loads(out)["documents"] == 1 and "left out: 1 empty" in error
    assert "x.bin, 000000-00000001: empty" in error
