"""A source is one file and one line of a table: new kinds are built and listed in the help without any other change."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from brt_dist import kinds
from brt_dist.data.dataset import Dataset
from brt_dist.errors import DataError
from launch.cli import brt
from pipelines.sources import open_sources

KINDS = """
from pipelines.sources.base import FileKind, TreeKind
from pipelines.sources.documents import BadDocument, Document
from pipelines.sources.places import opened, units_of


class Reversed(FileKind):
    about = "a file read backwards"
    suffixes = (".rev",)

    def read(self, unit):
        with opened(unit.url) as file:
            yield Document(file.read().decode()[::-1], unit.name)


class Notes(TreeKind):
    about = "a note of a notebook"
    wanted = "no notes"

    @classmethod
    def units(cls, folder, name):
        return units_of(folder, name, lambda file: "notes" if file.startswith("note") else None)

    def read(self, unit):
        with opened(unit.url) as file:
            text = file.read().decode()
        yield Document(text, unit.name) if text else BadDocument(unit.name, "empty")
"""


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The table with two more lines."""
    (tmp_path / "new_sources.py").write_text(KINDS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(kinds.SOURCES._places, "reversed", "new_sources:Reversed")
    monkeypatch.setitem(kinds.SOURCES._places, "notes", "new_sources:Notes")
    yield
    sys.modules.pop("new_sources", None)


@pytest.mark.usefixtures("table")
def test_new_kinds_of_files_and_folders_are_built(tmp_path: Path) -> None:
    files, book = tmp_path / "files", tmp_path / "book"
    files.mkdir(), book.mkdir()
    (files / "a.txt").write_text("first")
    (files / "b.rev").write_text("dnoces")
    (book / "note-1").write_text("third")
    (book / "other").write_text("not read")
    out = tmp_path / "out"
    arguments = ["data", "build", str(files), f"notes:{book}", "--out", str(out), "--tokenizer", "bytes"]
    done = CliRunner().invoke(brt, [*arguments, "--workers", "0"])
    assert done.exit_code == 0, done.output
    with Dataset.open(out) as dataset:
        tokens = [dataset.tokens(n, 0, dataset.length(n)).tolist() for n in range(dataset.documents)]
    assert [bytes(ids).strip(b"\0") for ids in tokens] == [b"first", b"second", b"third"]


@pytest.mark.usefixtures("table")
def test_help_and_errors_name_the_new_kinds(tmp_path: Path) -> None:
    said = CliRunner().invoke(brt, ["data", "build", "--help"]).output
    assert ".rev" in said and "a file read backwards" in said and "notes:FOLDER" in said
    (tmp_path / "x").mkdir()
    with pytest.raises(DataError, match=r"\.parquet, \.rev\), git:FOLDER, .* or notes:FOLDER"):
        open_sources([])
    with pytest.raises(DataError, match="nearest: notes:FOLDER"):
        open_sources([f"note:{tmp_path / 'x'}"])
    with pytest.raises(DataError, match="no notes"):
        list(open_sources([f"notes:{tmp_path / 'x'}"])[0].units(10))
