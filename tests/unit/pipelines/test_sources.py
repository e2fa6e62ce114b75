"""Sources: every document comes out once, in the stated order, and what cannot be used is named."""

import gzip
import io
import json
from collections import Counter
from pathlib import Path

import fsspec
import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from brt_dist.errors import DataError
from pipelines.build import BuildSettings, build
from pipelines.shard_contents import divide_into_shards, list_sources, sample
from pipelines.sources import BadDocument, Document, most_common, open_sources, read_units
from pipelines.sources.packed import damage, parquet_column, unpacked


def read_all(spec: Path | str, size: int = 1 << 20, suffixes: tuple[str, ...] = ()) -> list[Document | BadDocument]:
    (source,) = open_sources([str(spec)], suffixes)
    return [item for item in read_units(source.units(size), "text")]


def write_jsonl(path: Path, lines: list[bytes]) -> Path:
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def test_files_come_in_the_order_of_their_path_components(tmp_path: Path) -> None:
    for name in [
        "b.txt",
        "a.txt",
        "a/z.txt",
        "a/B.txt",
        "a/deep/er/x.txt",
        "é.txt",
        "c.md",
        ".hidden.txt",
        ".git/y.txt",
    ]:
        path = tmp_path / "corpus" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    places = [item.place for item in read_all(tmp_path / "corpus")]
    # "a" (the folder) is before "a.txt", though "/" is after "." as a character
    assert places == [f"corpus/{name}" for name in ["a/B.txt", "a/deep/er/x.txt", "a/z.txt", "a.txt", "b.txt", "é.txt"]]
    assert [item.place for item in read_all(tmp_path / "corpus", suffixes=(".md",))] == ["corpus/c.md"]


def test_text_is_taken_byte_for_byte(tmp_path: Path) -> None:
    text = "\ufeffone\r\ntwo\0three\rü \n"
    (tmp_path / "x.txt").write_bytes(text.encode())
    assert read_all(tmp_path / "x.txt") == [Document(text, "x.txt")]


def test_links_to_folders_do_not_loop(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus/a.txt").write_text("a")
    (tmp_path / "corpus/again").symlink_to(tmp_path / "corpus")
    assert [item.place for item in read_all(tmp_path / "corpus")] == ["corpus/a.txt"]


@settings(deadline=None)
@given(texts=st.lists(st.text(min_size=1, max_size=12), max_size=12), size=st.integers(1, 200), blank=st.booleans())
def test_a_jsonl_file_is_the_same_however_it_is_cut(
    texts: list[str], size: int, blank: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("jsonl") / "x.jsonl"
    lines = [json.dumps({"text": text, "id": 1}, ensure_ascii=number % 2 == 0) for number, text in enumerate(texts)]
    path.write_bytes(("\n \n" if blank else "\n").join(lines).encode(errors="surrogatepass"))
    whole = read_all(path)
    assert read_all(path, size) == whole
    assert [item.text for item in whole if isinstance(item, Document)] == [t for t in texts if is_unicode(t)]


def is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def test_every_kind_of_bad_line_is_named_with_its_number(tmp_path: Path) -> None:
    lines = [
        b'{"text": "good"}',
        b'{"text": "bad \xff"}',
        b"",
        b"{",
        b"[1]",
        b'{"body": "x"}',
        b'{"text": 3}',
        b'{"text": ""}',
        b'{"text": "\\ud800"}',
        b'{"text": "good too"}',
    ]
    path = write_jsonl(tmp_path / "x.jsonl", lines)
    expected = [
        ("line 2", "not UTF-8"),
        ("line 4", "not JSON"),
        ("line 5", "not a JSON object"),
        ("line 6", "no field 'text'"),
        ("line 7", "field 'text' is not text"),
        ("line 8", "empty"),
        ("line 9", "not Unicode (lone surrogate)"),
    ]
    for size in (1 << 20, 40, 7):  # the number is that in the file, in whichever part of it the line is read
        items = read_all(path, size)
        assert [item.text for item in items if isinstance(item, Document)] == ["good", "good too"]
        bad = [item for item in items if isinstance(item, BadDocument)]
        assert [(item.place, item.reason) for item in bad] == [(f"x.jsonl, {where}", why) for where, why in expected]


def test_bad_text_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus/a.txt").write_bytes(b"abc\xff")
    (tmp_path / "corpus/b.txt").write_bytes(b"")
    assert read_all(tmp_path / "corpus") == [
        BadDocument("corpus/a.txt, byte 3", "not UTF-8"),
        BadDocument("corpus/b.txt", "empty"),
    ]


def test_lines_of_json_by_any_name_and_case(tmp_path: Path) -> None:
    lines = b'{"text": "one"}\n{"text": "two"}\n'
    for name in ("a.ndjson", "b.NDJSON", "c.JSONL", "d.json", "e.json.gz"):
        (tmp_path / name).write_bytes(gzip.compress(lines) if name.endswith("gz") else lines)
        assert [item.text for item in read_all(tmp_path / name) if isinstance(item, Document)] == ["one", "two"], name
    (tmp_path / "F.TXT").write_bytes(b"three")
    assert [item.place.partition("@")[0] for item in read_all(tmp_path)] == [
        f"{tmp_path.name}/{name}"
        for name in ("F.TXT", "a.ndjson", "a.ndjson", "b.NDJSON", "b.NDJSON", "c.JSONL", "c.JSONL")
    ]  # .json is often something else: only if it is given, or with --suffix
    assert len(read_all(tmp_path, suffixes=(".json",))) == 2
    (tmp_path / "d.json").write_bytes(b'{\n "text": "one"\n}\n')
    assert all(isinstance(item, BadDocument) and item.reason == "not JSON" for item in read_all(tmp_path / "d.json"))


def test_gzip_is_read_and_a_truncated_one_is_named(tmp_path: Path) -> None:
    lines = [json.dumps({"text": f"document {number} " + "x" * number}).encode() for number in range(2000)]
    data = gzip.compress(b"\n".join(lines))
    (tmp_path / "x.jsonl.gz").write_bytes(data)
    whole = read_all(tmp_path / "x.jsonl.gz", 100)
    assert len(whole) == 2000 and all(isinstance(item, Document) for item in whole)
    (tmp_path / "x.jsonl.gz").write_bytes(data[: len(data) // 2])
    *good, last = read_all(tmp_path / "x.jsonl.gz")
    assert good == whole[: len(good)] and 0 < len(good) < 2000
    assert last == BadDocument(f"x.jsonl.gz, after line {len(good)}", "broken gzip (EOFError)")


def test_zstd_is_read_and_a_truncated_one_is_named(tmp_path: Path) -> None:
    lines = [
        json.dumps({"text": f"document {number} " + "x" * (number % 97)}).encode() + b"\n" for number in range(9000)
    ]
    codec = pyarrow.Codec("zstd")
    frames = [codec.compress(b"".join(part), asbytes=True) for part in (lines[:10], lines[10:])]
    path = tmp_path / "x.jsonl.zst"
    path.write_bytes(b"".join(frames))  # `zstd` itself writes several frames for large files
    whole = read_all(path, 100)
    assert [item.text for item in whole if isinstance(item, Document)] == [json.loads(line)["text"] for line in lines]
    for damaged in (b"".join(frames)[:-1], frames[0] + frames[1][: len(frames[1]) // 2], frames[0] + b"no frame"):
        path.write_bytes(damaged)
        *good, last = read_all(path)
        assert good == whole[: len(good)] and len(good) < 9000
        assert last == BadDocument(f"x.jsonl.zst, after line {len(good)}", "broken zstd")


@pytest.mark.parametrize("kind", [pyarrow.string(), pyarrow.large_string(), pyarrow.string_view(), "dictionary"])
def test_parquet_rows_are_documents(tmp_path: Path, kind: pyarrow.DataType | str) -> None:
    texts = [f"row {number} ü\0\r\n" for number in range(1000)]
    texts[7:9] = [None, ""]  # type: ignore[list-item]
    column = pyarrow.array(texts).dictionary_encode() if kind == "dictionary" else pyarrow.array(texts, kind)
    table = pyarrow.table({"id": list(range(1000)), "text": column})
    parquet.write_table(table, tmp_path / "x.parquet", row_group_size=300)
    items = read_all(tmp_path / "x.parquet", 100)
    assert items[7] == BadDocument("x.parquet, row 8", "field 'text' is not text")
    assert items[8] == BadDocument("x.parquet, row 9", "empty")
    assert items[:7] + items[9:] == [
        Document(text, f"x.parquet, row {row}") for row, text in enumerate(texts, 1) if row not in (8, 9)
    ]


def test_parquet_without_text_loses_no_row_unsaid(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    parquet.write_table(pyarrow.table({"body": ["a", "b"]}), path)
    assert read_all(path) == [BadDocument(f"x.parquet, row {row}", "no field 'text'") for row in (1, 2)]
    twice = pyarrow.table([pyarrow.array(["a", "b"]), pyarrow.array(["c", "d"])], names=["text", "text"])
    parquet.write_table(twice, path)
    assert read_all(path) == [BadDocument(f"x.parquet, row {row}", "two fields are named 'text'") for row in (1, 2)]
    parquet.write_table(pyarrow.table({"text": [1, 2]}), path)
    assert read_all(path) == [BadDocument(f"x.parquet, row {row}", "field 'text' is not text") for row in (1, 2)]


def test_damaged_parquet_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    bad = pyarrow.array([b"good", b"bad \xff"]).cast(pyarrow.binary()).view(pyarrow.string())
    parquet.write_table(pyarrow.table({"text": bad}), path)
    assert read_all(path) == [
        Document("good", "x.parquet, row 1"),
        BadDocument("x.parquet, row 2, byte 4", "not UTF-8"),
    ]
    parquet.write_table(pyarrow.table({"text": [f"text {n}" for n in range(500)]}), path, row_group_size=100)
    data = path.read_bytes()
    path.write_bytes(data[:-20])
    assert read_all(path) == [BadDocument("x.parquet, after row 0", "broken Parquet (ArrowInvalid)")]
    offset = _page_of_group(data, 2)
    path.write_bytes(data[:offset] + b"\xff" * 30 + data[offset + 30 :])
    *good, last = read_all(path)
    assert [item.text for item in good if isinstance(item, Document)] == [f"text {n}" for n in range(len(good))]
    assert 0 < len(good) <= 200 and isinstance(last, BadDocument) and last.reason.startswith("broken Parquet")
    assert last.place == f"x.parquet, after row {len(good)}"


@pytest.mark.parametrize("error", [TimeoutError(), OSError(5, "Input/output error")])
def test_a_storage_that_fails_is_no_bad_document(error: OSError) -> None:
    class Failing(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise error

    with pytest.raises(type(error)), damage("zstd"):
        unpacked(Failing(b"x" * 100), "zstd").readline()
    with pytest.raises(type(error)):
        list(parquet_column(Failing(b"x" * 100), "text"))


def _page_of_group(data: bytes, group: int) -> int:
    column = parquet.ParquetFile(io.BytesIO(data)).metadata.row_group(group).column(0)
    return int(column.dictionary_page_offset or column.data_page_offset)


def test_any_fsspec_file_system(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/test_sources/corpus/b.txt", b"two")
    memory.pipe("/test_sources/corpus/a.txt", b"one")
    memory.pipe("/test_sources/corpus/c.jsonl", b'{"text": "three"}\n{"text": "four"}\n')
    try:
        items = read_all("memory://test_sources/corpus", size=20)
        assert [item.text for item in items if isinstance(item, Document)] == ["one", "two", "three", "four"]
        assert items[0].place == "corpus/a.txt"
    finally:
        memory.rm("/test_sources", recursive=True)


def test_a_file_that_changed_since_it_was_listed_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("before")
    (source,) = open_sources([str(tmp_path / "x.txt")])
    (unit,) = source.units(100)
    (tmp_path / "x.txt").write_text("afterwards")
    with pytest.raises(DataError, match="10 bytes, it had 6 when the build began"):
        list(read_units([unit], "text"))


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no source"):
        open_sources([])
    with pytest.raises(DataError, match="nowhere: no such file"):
        open_sources([str(tmp_path / "nowhere")])
    with pytest.raises(DataError, match="xyz://y"):
        open_sources(["xyz://y"])
    (tmp_path / "one/same").mkdir(parents=True)
    (tmp_path / "two/same").mkdir(parents=True)
    with pytest.raises(DataError, match="two sources are named 'same'"):
        open_sources([str(tmp_path / "one/same"), str(tmp_path / "two/same")])
    (tmp_path / "one/same/x.md").write_text("x")
    with pytest.raises(DataError, match=r"no files that end in \.txt or"):
        list(open_sources([str(tmp_path / "one/same")])[0].units(1))


def test_the_plan_keeps_order_sizes_and_sources_apart(tmp_path: Path) -> None:
    for source, sizes in (("a", [40, 40, 40, 250, 10]), ("b", [30])):
        (tmp_path / source).mkdir()
        for number, size in enumerate(sizes):
            (tmp_path / source / f"{number}.txt").write_text("x" * size)
    sources = open_sources([str(tmp_path / "a"), str(tmp_path / "b")])
    shards = list(divide_into_shards(sources, 100))
    assert [[unit.name for unit in shard.units] for shard in shards] == [
        ["a/0.txt", "a/1.txt"],
        ["a/2.txt"],
        ["a/3.txt"],  # larger than a shard: alone, and whole
        ["a/4.txt"],
        ["b/0.txt"],
    ]
    assert [shard.number for shard in shards] == [0, 1, 2, 3, 4]
    listing = list_sources(sources, 100)
    assert (listing.shards, listing.text_bytes) == (5, 410)
    (tmp_path / "a/0.txt").write_text("y" * 41)
    assert list_sources(sources, 100).digest != listing.digest


def test_a_sample_is_spread_over_the_corpus(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for number in range(100):
        (tmp_path / "a" / f"{number:02d}.txt").write_text("x" * 10)
    sources = open_sources([str(tmp_path / "a")])
    listing = list_sources(sources, 300)
    taken = [int(item.place[2:4]) for item in sample(sources, 300, listing, 200, "text")]
    assert len(taken) == 20 and all(5 * n <= taken[n] < 5 * n + 5 for n in range(20))
    assert len(list(sample(sources, 300, listing, 1000, "text"))) == 100


def test_nothing_of_a_folder_is_left_out_in_silence(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    (corpus / "inner").mkdir(parents=True)
    for name in ("a.txt", "b.pdf", "inner/c.PDF", "inner/d", ".hidden", "x.tar", "e.toolongforasuffix"):
        (corpus / name).write_text("text")
    (corpus / "linked").symlink_to(tmp_path)
    report = build(BuildSettings((str(corpus),), tokenizer="bytes"), tmp_path / "out", workers=0)
    left_out = {
        ".pdf (not read)": 2,
        ".tar (not read)": 1,
        "without a suffix (not read)": 2,
        "hidden (name starts with a dot)": 1,
        "link to a folder": 1,
    }
    assert report.dataset.sources[0].skipped == left_out
    assert json.loads((tmp_path / "out" / "dataset.json").read_text())["sources"][0]["skipped"] == left_out
    again = build(BuildSettings((str(corpus),), tokenizer="bytes"), tmp_path / "out", workers=0)
    assert again.dataset == report.dataset and again.kept_shards == 1
    (corpus / "a.txt").unlink()
    with pytest.raises(DataError, match=r"no files that end in .* \(it holds 2 \.pdf \(not read\), 2 without a suffix"):
        list(open_sources([str(corpus)])[0].units(1))


def test_suffixes_without_number_are_counted_together(tmp_path: Path) -> None:
    for number in range(30):
        (tmp_path / f"x.{number:03d}").touch()
    left_out: Counter[str] = Counter()
    (tmp_path / "a.txt").touch()
    list(open_sources([str(tmp_path)])[0].units(1, left_out))
    told = most_common(left_out)
    assert len(told) == 21 and told["other suffixes (not read)"] == 10 and sum(told.values()) == 30


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (b"%PDF-1.7\n%", "a PDF file, not UTF-8 text"),
        (b"PK\x03\x04\x14\x00", "a zip file (such as .docx, .epub or .npz), not UTF-8 text"),
        ("text".encode("utf-16"), "UTF-16, not UTF-8 text"),
        (b"BZh91AY&SY\x00", "a bzip2 file, not UTF-8 text"),
        (b"MMIDIDX\x00\x00\x01", "an index of Megatron, not UTF-8 text"),
        (b"caf\xe9", "not UTF-8"),
    ],
)
def test_a_format_that_is_not_read_is_named(data: bytes, named: str, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes(data)
    (found,) = read_all(tmp_path / "x.txt")
    assert isinstance(found, BadDocument) and found.reason == named
    (tmp_path / "x.txt").write_bytes(b"BZh is how bzip2 files begin, and PAR1 Parquet's")
    assert isinstance(read_all(tmp_path / "x.txt")[0], Document)
