"""Building without Ray: what is in a dataset folder, what is refused, what is kept and what is named."""

import gzip
import hashlib
import json
import os
import subprocess
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import webdataset

from brt_dist.data.dataset import Dataset
from brt_dist.data.format import load_index
from brt_dist.data.tokenizers import load_tokenizer
from brt_dist.errors import DataError
from pipelines.build import LOCK_FILE, BuildProgress, BuildReport, BuildSettings, build
from pipelines.verify import verify
from tests.datasets import make_dataset

TEXTS = [f"{word} and again {word} — ünïcode\n" * (3 + 5 * n) for n, word in enumerate(["one", "two", "three", "four"])]


def files_of(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.fixture
def made(tmp_path: Path) -> BuildReport:
    return make_dataset(tmp_path, TEXTS, tokenizer="bpe:280", shard_size=500)


def again(report: BuildReport, **changes: object) -> BuildReport:
    overwrite = bool(changes.pop("overwrite", False))
    values = {"sources": (str(report.folder.parent / "corpus"),), "tokenizer": "bpe:280", "shard_size": 500, **changes}
    return build(BuildSettings(**values), report.folder, workers=0, overwrite=overwrite)  # type: ignore[arg-type]


def test_webdataset_itself_reads_the_shards(made: BuildReport) -> None:
    """Every document, in order, from the library whose format it is."""
    tokenizer = load_tokenizer(made.folder / "tokenizer.json")
    urls = [str(made.folder / shard.name) for shard in made.dataset.shards]
    assert len(urls) == 3
    samples = list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False))
    texts = [tokenizer.decode(np.frombuffer(sample["tokens"], dtype="<u2")) for sample in samples]
    assert texts == TEXTS
    for number, (sample, text) in enumerate(zip(samples, TEXTS, strict=True)):
        meta = json.loads(sample["json"])
        assert meta["source"] == f"corpus/{number:05d}.txt" and meta["length"] * 2 == len(sample["tokens"])
        assert meta["digest"] == f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def test_webdatasets_own_decoding_gives_tokens_and_facts(made: BuildReport) -> None:
    urls = [str(made.folder / shard.name) for shard in made.dataset.shards]
    decoders = (webdataset.handle_extension("tokens", lambda data: np.frombuffer(data, dtype="<u2")),)
    samples = (
        webdataset.WebDataset(urls, shardshuffle=False, empty_check=False).decode(*decoders).to_tuple("tokens", "json")
    )
    with Dataset.open(made.folder) as dataset:
        for number, (tokens, facts) in enumerate(samples):
            assert np.array_equal(tokens, dataset.tokens(number, 0, int(dataset.lengths[number])))
            assert facts["length"] == len(tokens) and facts["source"] == f"corpus/{number:05d}.txt"
        assert number + 1 == len(dataset.lengths) == len(TEXTS)


def test_speeches_come_back_word_for_word(tmp_path: Path) -> None:
    speeches = Path(__file__).parents[2] / "data" / "speeches.jsonl"
    texts = [json.loads(line)["text"] for line in speeches.read_text().splitlines()]
    settings = BuildSettings((str(speeches),), tokenizer="bpe:1000", shard_size=60_000)
    report = build(settings, tmp_path / "plain", workers=0)
    assert report.dataset.documents == len(texts) == 16 and len(report.dataset.shards) > 2
    tokenizer = load_tokenizer(report.folder / "tokenizer.json")
    with Dataset.open(report.folder) as dataset:
        found = [tokenizer.decode(dataset.tokens(n, 0, int(length))) for n, length in enumerate(dataset.lengths)]
    assert found == texts
    (tmp_path / "speeches.jsonl.gz").write_bytes(gzip.compress(speeches.read_bytes()))
    packed = replace(settings, sources=(str(tmp_path / "speeches.jsonl.gz"),))
    with Dataset.open(build(packed, tmp_path / "packed", workers=0).folder) as dataset:
        assert [tokenizer.decode(dataset.tokens(n, 0, int(size))) for n, size in enumerate(dataset.lengths)] == texts


def test_what_a_source_leaves_out_by_its_rules_is_counted_and_no_error(tmp_path: Path) -> None:
    root = tmp_path / "repository"
    for name, content in {"a.py": b"a = 1\n", "logo": b"\x89\0", "vendor/b.py": b"b\n", "vendor/c.py": b"c\n"}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    for command in (["init", "-q"], ["add", "-A"]):
        subprocess.run(["git", "-C", str(root), *command], check=True)
    settings = BuildSettings((f"git:{root}",), tokenizer="bytes")
    report = build(settings, tmp_path / "dataset", workers=0)
    assert report.dataset.documents == 1
    assert report.dataset.sources[0].skipped == {"a binary file": 1, "a vendored file": 2}
    index = load_index(report.folder / "shard-000000.index.json")
    assert [item.place for item in index.skipped] == [
        "repository/logo",
        "repository/vendor/b.py",
        "repository/vendor/c.py",
    ]
    assert build(settings, tmp_path / "dataset", workers=0).kept_shards == 1  # it counts as whole


def test_the_index_says_where_tar_has_the_tokens(made: BuildReport) -> None:
    for shard in made.dataset.shards:
        index = load_index(made.folder / shard.name.replace(".tar", ".index.json"))
        with tarfile.open(made.folder / shard.name) as tar:
            members = {member.name: member for member in tar}
            assert all(member.mtime == 0 for member in members.values())
            for entry in index.entries:
                member = members.pop(f"{entry.key}.tokens")
                assert (member.offset_data, member.size) == (entry.offset, entry.tokens * 2)
                data = tar.extractfile(member)
                assert data and hashlib.sha256(data.read()).hexdigest() == entry.sha256
                del members[f"{entry.key}.json"]
            assert not members


def test_totals_are_those_of_the_texts(made: BuildReport) -> None:
    dataset = made.dataset
    assert dataset.documents == 4 and dataset.text_bytes == sum(len(text.encode()) for text in TEXTS)
    tokenizer = load_tokenizer(made.folder / "tokenizer.json")
    assert dataset.tokens == sum(len(tokenizer.encode(text)) for text in TEXTS)
    assert dataset.tokenizer.sha256 == hashlib.sha256((made.folder / "tokenizer.json").read_bytes()).hexdigest()
    assert dataset.dtype == "uint16" and dataset.tokenizer.vocab_size == tokenizer.vocab_size == 280
    assert not list(made.folder.glob(".*tmp*"))


def test_a_large_vocabulary_is_stored_in_four_bytes(tmp_path: Path, made: BuildReport) -> None:
    content = json.loads((made.folder / "tokenizer.json").read_bytes())
    vocabulary = content["model"]["vocab"]
    vocabulary["o"] = 70_000  # ids may have holes
    (tmp_path / "large.json").write_text(json.dumps(content))
    report = make_dataset(tmp_path / "large", TEXTS, tokenizer=str(tmp_path / "large.json"))
    assert report.dataset.dtype == "uint32"
    with Dataset.open(report.folder) as dataset:
        ids = dataset.tokens(0, 0, int(dataset.lengths[0]))
        assert 70_000 in ids
        assert load_tokenizer(dataset.tokenizer).decode(ids) == TEXTS[0]


def test_building_again_elsewhere_gives_the_same_bytes(tmp_path: Path, made: BuildReport) -> None:
    other = make_dataset(tmp_path / "elsewhere", TEXTS, tokenizer="bpe:280", shard_size=500)
    one, two = files_of(made.folder), files_of(other.folder)
    for name in ("build.json",):  # knows the times of the files
        assert one.pop(name) and two.pop(name)
    assert one == two and other.dataset.digest == made.dataset.digest


def test_a_finished_build_is_left_alone(made: BuildReport) -> None:
    times = {path.name: path.stat().st_mtime_ns for path in made.folder.glob("*.tar")}
    report = again(made)
    assert (report.written_shards, report.kept_shards, report.tokens_per_second) == (0, 3, 0.0)
    assert report.dataset == made.dataset
    assert times == {path.name: path.stat().st_mtime_ns for path in made.folder.glob("*.tar")}


@pytest.mark.parametrize("lost", ["shard-000001.index.json", "shard-000001.tar", "truncate", "garbage"])
def test_only_shards_that_do_not_count_are_written_again(made: BuildReport, lost: str) -> None:
    before = files_of(made.folder)
    (made.folder / "dataset.json").unlink()
    (made.folder / ".shard-000001.tar.tmp-99-abcd").write_bytes(b"left by a killed process")
    if lost == "truncate":
        os.truncate(made.folder / "shard-000001.tar", 1000)
    elif lost == "garbage":
        (made.folder / "shard-000001.index.json").write_text("{")
    else:
        (made.folder / lost).unlink()
    report = again(made)
    assert (report.written_shards, report.kept_shards) == (1, 2)
    assert files_of(made.folder) == before


def test_another_build_in_the_folder_is_not_touched(made: BuildReport) -> None:
    before = files_of(made.folder)
    with pytest.raises(DataError, match="it differs in: tokenizer"):
        again(made, tokenizer="bytes")
    with pytest.raises(DataError, match=r"differs in: shard_size, text_field.*--overwrite"):
        again(made, shard_size=700, text_field="body")
    os.utime(made.folder.parent / "corpus/00002.txt", (1, 1))
    with pytest.raises(DataError, match="names, sizes or times of the files"):
        again(made)
    assert files_of(made.folder) == before
    report = again(made, tokenizer="bytes", shard_size=5000, overwrite=True)
    assert report.dataset.tokenizer.kind == "bytes" and not (made.folder / "shard-000001.tar").exists()
    assert verify(made.folder)[1] == []


def test_two_builds_do_not_write_one_folder(made: BuildReport) -> None:
    import fcntl

    with open(made.folder / LOCK_FILE, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="another build is writing there"):
            again(made)


def test_a_tokenizer_that_was_changed_under_the_build_is_refused(made: BuildReport) -> None:
    (made.folder / "tokenizer.json").write_bytes((made.folder / "tokenizer.json").read_bytes() + b" ")
    with pytest.raises(DataError, match=r"tokenizer\.json has changed"):
        again(made)


def test_bad_documents_stop_the_build_or_are_counted(tmp_path: Path) -> None:
    corpus, out = tmp_path / "corpus", tmp_path / "dataset"
    corpus.mkdir()
    (corpus / "a.txt").write_text("good")
    (corpus / "b.txt").write_bytes(b"x\xff")
    (corpus / "c.txt").write_bytes(b"")
    (corpus / "d.jsonl").write_text('{"text": "fine"}\n{"body": "?"}\n')

    def run(on_bad: str) -> BuildReport:
        settings = BuildSettings((str(corpus),), tokenizer="bytes", on_bad=on_bad, shard_size=3)  # type: ignore[arg-type]
        return build(settings, out, workers=0)

    with pytest.raises(DataError, match=r"corpus/b\.txt, byte 1: not UTF-8; --on-bad skip"):
        run("error")
    assert not (out / "dataset.json").exists()
    report = run("skip")
    assert report.dataset.documents == 2 and report.dataset.tokens == 8
    assert report.dataset.sources[0].skipped == {"not UTF-8": 1, "empty": 1, "no field 'text'": 1}
    places = [(i.place, i.reason) for p in sorted(out.glob("*.index.json")) for i in load_index(p).skipped]
    assert ("corpus/d.jsonl, line 2", "no field 'text'") in places and len(places) == 3
    assert verify(out)[1] == []
    with Dataset.open(out) as dataset:  # some shards have no document
        assert [bytes(dataset.tokens(n, 0, 4).astype(np.uint8)) for n in (0, 1)] == [b"good", b"fine"]
    with pytest.raises(DataError, match="not UTF-8"):  # under the strict policy what was left out is not kept
        run("error")


def test_nothing_usable_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"")
    with pytest.raises(DataError, match="none of the documents"):
        build(BuildSettings((str(tmp_path / "a.txt"),), "bytes", on_bad="skip"), tmp_path / "out", workers=0)


def test_a_lossy_tokenizer_needs_leave(tmp_path: Path, made: BuildReport) -> None:
    content = json.loads((made.folder / "tokenizer.json").read_bytes()) | {"normalizer": {"type": "Lowercase"}}
    (tmp_path / "lossy.json").write_text(json.dumps(content))
    (tmp_path / "x.txt").write_text("Some CAPITALS")
    settings = BuildSettings((str(tmp_path / "x.txt"),), tokenizer=str(tmp_path / "lossy.json"))
    with pytest.raises(DataError, match=r"x\.txt: the tokenizer does not preserve this text"):
        build(settings, tmp_path / "out", workers=0)
    report = build(BuildSettings(settings.sources, settings.tokenizer, lossy="allow"), tmp_path / "out", workers=0)
    assert report.dataset.documents == 1


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def test_verify_names_what_is_damaged(made: BuildReport) -> None:
    assert verify(made.folder)[1] == []
    entry = load_index(made.folder / "shard-000001.index.json").entries[0]
    damages: list[tuple[str, Callable[[Path], None], list[str]]] = [
        (
            "shard-000001.tar",
            lambda path: flip(path, entry.offset + 3),
            ["shard-000001.tar: altered", f"document {entry.key} is damaged"],
        ),
        ("shard-000002.tar", lambda path: flip(path, 3), ["shard-000002.tar: altered"]),
        ("shard-000000.tar", lambda path: os.truncate(path, 2048), ["shard-000000.tar: 2048 bytes"]),
        ("shard-000000.tar", Path.unlink, ["shard-000000.tar: cannot be read"]),
        ("shard-000001.index.json", lambda path: flip(path, 30), ["shard-000001"]),
        ("documents.npy", lambda path: flip(path, 130), ["documents.npy: altered"]),
        ("tokenizer.json", lambda path: flip(path, 100), ["tokenizer.json: altered"]),
    ]
    for name, damage, expected in damages:
        path = made.folder / name
        good = path.read_bytes()
        damage(path)
        problems = verify(made.folder)[1]
        assert problems and all(any(part in problem for problem in problems) for part in expected), (name, problems)
        path.write_bytes(good)
    assert verify(made.folder)[1] == []


def test_opening_refuses_missing_and_truncated_files_by_name(made: BuildReport) -> None:
    for name in ("shard-000001.tar", "documents.npy", "tokenizer.json"):
        path = made.folder / name
        good = path.read_bytes()
        path.unlink()
        with pytest.raises(DataError, match=f"{name}: missing"):
            Dataset.open(made.folder)
        path.write_bytes(good[:100])
        if name != "tokenizer.json":
            with pytest.raises(DataError, match=name):
                Dataset.open(made.folder)
        path.write_bytes(good)
    (made.folder / "dataset.json").write_text('{"format": 2}')
    with pytest.raises(DataError, match=r"dataset\.json: not a dataset of format 1: format"):
        Dataset.open(made.folder)
    (made.folder / "dataset.json").unlink()
    with pytest.raises(DataError, match="the build has not finished"):
        Dataset.open(made.folder)
    with pytest.raises(DataError, match="not a dataset folder"):
        Dataset.open(made.folder.parent)


def test_a_sentencepiece_model_builds_a_dataset_and_its_loss_is_reported(tmp_path: Path) -> None:
    """T5's handling of line ends: they become spaces, which the build reports."""
    from tests.unit.data.test_tokenizers import sentence_piece

    model = sentence_piece(tmp_path)
    text = "import json\nfrom pathlib import Path\n" * 20
    with pytest.raises(DataError, match=r"00000\.txt: the tokenizer does not preserve this text.*--lossy allow"):
        make_dataset(tmp_path / "strict", [text], tokenizer=str(model))
    notes: list[str] = []

    class Heard(BuildProgress):
        def note(self, text: str) -> None:
            notes.append(text)

    settings = BuildSettings((str(tmp_path / "strict/corpus"),), str(model), lossy="allow")
    report = build(settings, tmp_path / "out", workers=0, progress=Heard())
    assert report.dataset.tokenizer.kind == "sentencepiece" and verify(tmp_path / "out")[1] == []
    assert len(notes) == 1 and "lose text, for example corpus/00000.txt" in notes[0] and r"'\nfrom" in notes[0]
    with pytest.raises(DataError, match="--lossy allow"):
        build(replace(settings, lossy="error"), tmp_path / "out", workers=0)
    with Dataset.open(report.folder) as dataset:
        ids = dataset.tokens(0, 0, int(dataset.lengths[0]))
        assert load_tokenizer(dataset.tokenizer).decode(ids) == " ".join(text.split())
