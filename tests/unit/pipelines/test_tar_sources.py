"""Documents in tars: as webdataset writes them, and damaged ones."""

import io
import tarfile
from pathlib import Path

import pytest

from pipelines.sources import BadDocument, Document, open_sources, read_units


def write_tar(path: Path, samples: list[dict[str, object]]) -> None:
    from webdataset import TarWriter

    with TarWriter(str(path)) as writer:
        for sample in samples:
            writer.write(sample)


def test_tars_that_webdataset_wrote(tmp_path: Path) -> None:
    samples: list[dict[str, object]] = [
        {"__key__": "a/1", "txt": "first", "json": {"text": "not this"}},
        {"__key__": "a/2", "json": {"text": "second ü"}, "cls": 3},
        {"__key__": "a/3", "cls": 3},
        {"__key__": "a/4", "json": ["none"]},
        {"__key__": "b/4", "txt": ""},
    ]
    write_tar(tmp_path / "t.tar", samples)
    (source,) = open_sources([str(tmp_path / "t.tar")])
    (unit,) = source.units(10)
    assert [*read_units([unit], "text")] == [
        Document("first", "t.tar, a/1"),
        Document("second ü", "t.tar, a/2"),
        BadDocument("t.tar, a/3", "no text"),
        BadDocument("t.tar, a/4", "no text"),
        BadDocument("t.tar, b/4", "empty"),
    ]


def test_a_name_that_comes_twice_in_a_tar_is_two_documents(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        for text in (b"first", b"second"):
            member = tarfile.TarInfo("k1.txt")
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text))
    (source,) = open_sources([str(tmp_path / "t.tar")])
    found = read_units(source.units(10), "text")
    assert [item.text for item in found if isinstance(item, Document)] == ["first", "second"]


@pytest.mark.parametrize("size", [0, 100, 1000, 3000])
def test_a_tar_that_is_cut_is_one_bad_document_from_there_on(tmp_path: Path, size: int) -> None:
    write_tar(tmp_path / "t.tar", [{"__key__": f"{n}", "txt": f"text {n} " * 40} for n in range(5)])
    whole = (tmp_path / "t.tar").read_bytes()
    (tmp_path / "t.tar").write_bytes(whole[:size])
    (source,) = open_sources([str(tmp_path / "t.tar")])
    *good, bad = [item for item in read_units(source.units(10), "text")]
    assert good == [Document(f"text {n} " * 40, f"t.tar, {n}") for n in range(len(good))] and len(good) < 5
    assert isinstance(bad, BadDocument) and "damaged tar" in bad.reason
