"""Datasets that other libraries wrote: the files in tests/data/foreign are theirs (see the README there)."""

import json
import shutil
import struct
from pathlib import Path

import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import ipc

from brt_dist.errors import DataError
from pipelines.sources import BadDocument, Document, open_sources, read_units

FOREIGN = Path(__file__).parents[2] / "data" / "foreign"
TEXTS = [f"document {number}: " + "word " * number + "é" for number in range(10)]
KINDS = {"hf": "hf", "mds": "mds", "mds_zstd": "mds", "mds_gz": "mds"}


def read_all(kind: str, folder: Path, field: str = "text") -> list[Document | BadDocument]:
    (source,) = open_sources([f"{kind}:{folder}"])
    return list(read_units(source.units(1 << 20), field))


@pytest.mark.parametrize(("name", "kind"), KINDS.items())
def test_every_document_comes_once_and_in_order(name: str, kind: str) -> None:
    found = read_all(kind, FOREIGN / name)
    assert [item.text for item in found if isinstance(item, Document)] == TEXTS
    assert len({item.place for item in found}) == len(TEXTS) and found[0].place.startswith(f"{name}/")


@pytest.mark.parametrize(("name", "kind"), KINDS.items())
def test_a_field_that_is_no_text_is_named(name: str, kind: str) -> None:
    for field, reason in (("id", "field 'id' is not text"), ("body", "no field 'body'")):
        found = read_all(kind, FOREIGN / name, field)
        assert found and {item.reason for item in found if isinstance(item, BadDocument)} == {reason}


def test_both_forms_of_arrow_and_rows_without_text(tmp_path: Path) -> None:
    table = pyarrow.table({"text": pyarrow.array(["a", None, "ü"], pyarrow.large_string())})
    (tmp_path / "state.json").write_text(
        json.dumps({"_data_files": [{"filename": "b.arrow"}, {"filename": "a.arrow"}]})
    )
    for name, make in (("b.arrow", ipc.new_stream), ("a.arrow", ipc.new_file)):
        with open(tmp_path / name, "wb") as file, make(file, table.schema) as writer:
            writer.write_table(table)
    found = read_all("hf", tmp_path)
    assert [getattr(item, "text", None) for item in found] == ["a", None, "ü"] * 2
    assert found[0].place.endswith("b.arrow, row 1"), "in the order of the dataset, not of the names"


@pytest.mark.parametrize(
    ("kind", "files", "said"),
    [
        ("hf", {}, "no Hugging Face dataset"),
        ("hf", {"dataset_dict.json": '{"splits": ["train", "test"]}'}, "nearest: hf:FOLDER/train"),
        ("hf", {"state.json": "["}, "is not an object of JSON"),
        ("hf", {"state.json": '{"_data_files": [{"filename": "x.arrow"}]}'}, "x.arrow is missing"),
        ("hf", {"state.json": '{"_data_files": [{"filename": "../x"}]}'}, "names no file"),
        ("mds", {}, "no MDS dataset"),
        ("mds", {"index.json": "[" * 5000}, "is not the index of an MDS dataset"),
        ("mds", {"index.json": '{"shards": [{"format": "json", "raw_data": {}}]}'}, "shard 0 is json"),
        (
            "mds",
            {"index.json": '{"shards": [{"format": "mds", "compression": "br:11"}]}'},
            "shard 0 is br; MDS is read",
        ),
        ("mds", {"index.json": '{"shards": [{"format": "mds", "raw_data": {"basename": "s"}}]}'}, "s is missing"),
    ],
)
def test_what_is_no_such_dataset_is_told(kind: str, files: dict[str, str], said: str, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(DataError) as told:
        read_all(kind, tmp_path)
    assert said.replace("FOLDER", str(tmp_path)) in str(told.value)


@pytest.mark.parametrize(("name", "kind"), KINDS.items())
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_damage_is_a_bad_document_and_no_other_error(
    name: str, kind: str, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("damaged") / name
    shutil.copytree(FOREIGN / name, folder)
    shard = data.draw(st.sampled_from(sorted(path for path in folder.iterdir() if path.suffix != ".json")))
    content = bytearray(shard.read_bytes())
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content))) :]
    for at, value in data.draw(st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=4)):
        if content:
            content[at % len(content)] = value
    shard.write_bytes(bytes(content))
    assert all(isinstance(item, Document | BadDocument) for item in read_all(kind, folder))


def test_a_count_that_no_memory_holds_is_damage(tmp_path: Path) -> None:
    (tmp_path / "s").write_bytes(struct.pack("<I", 2**32 - 1) + b"\0" * 100)
    (tmp_path / "index.json").write_text(json.dumps({"shards": [{"format": "mds", "raw_data": {"basename": "s"}}]}))
    (found,) = read_all("mds", tmp_path)
    assert isinstance(found, BadDocument) and found.reason == "broken MDS"


@pytest.mark.parametrize(
    ("name", "said"), [("hf", "nearest: hf:"), ("mds", "nearest: mds:"), ("mds_zstd", "nearest: mds:")]
)
def test_a_dataset_that_is_given_as_a_folder_of_text_is_named(name: str, said: str, tmp_path: Path) -> None:
    (source,) = open_sources([str(FOREIGN / name)])
    with pytest.raises(DataError) as told:
        list(source.units(1 << 20))
    assert said + str(FOREIGN / name) in str(told.value)
    for file in ("x.bin", "x.idx"):
        (tmp_path / file).touch()
    (source,) = open_sources([str(tmp_path)])
    with pytest.raises(
        DataError,
        match=r"\(it holds 1 .bin \(not read\), 1 .idx \(not read\)\); it holds tokens of Megatron; nearest: brt data",
    ):
        list(source.units(1 << 20))


@pytest.mark.parametrize("offset", [7000 + 20 * step for step in range(40)])
def test_damaged_places_of_texts_are_no_error_of_python(offset: int, tmp_path: Path) -> None:
    folder = tmp_path / "hf"
    shutil.copytree(FOREIGN / "hf", folder)
    shard = folder / "data-00000-of-00003.arrow"
    content = bytearray(shard.read_bytes())
    content[offset % len(content) : offset % len(content) + 20] = b"\xff" * len(content[offset % len(content) :][:20])
    shard.write_bytes(content)
    assert all(isinstance(item, Document | BadDocument) for item in read_all("hf", folder))


def test_a_damaged_name_of_a_column_is_a_bad_document(tmp_path: Path) -> None:
    """Arrow decodes the names only when they are asked for."""
    folder = tmp_path / "hf"
    shutil.copytree(FOREIGN / "hf", folder)
    shard = folder / "data-00000-of-00003.arrow"
    content = shard.read_bytes()
    shard.write_bytes(content.replace(b"text", b"\x80ext"))
    found = read_all("hf", folder)
    assert any(isinstance(item, BadDocument) and "schema" in item.reason for item in found)
