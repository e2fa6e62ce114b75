"""The data commands: one JSON object on standard output, everything else on standard error, help at once."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from brt_dist.checkpoint.manifest import Manifest
from brt_dist.data.dataset import Dataset
from brt_dist.data.stream_schedule import StreamSchedule
from brt_dist.errors import ConfigError, DataError
from launch.commands.data import data
from pipelines.corpora import Text, write_corpus
from pipelines.verify import verify
from tests.datasets import make_dataset

TEXTS = ["The first document, of some length.", "Another.", "A third one\nof two lines."]


def run(*arguments: object) -> Result:
    result = CliRunner().invoke(data, [str(argument) for argument in arguments], catch_exceptions=True)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def build(folder: Path, *more: object) -> Result:
    if not (folder / "corpus/0.txt").exists():
        (folder / "corpus").mkdir(exist_ok=True)
        for number, text in enumerate(TEXTS):
            (folder / "corpus" / f"{number}.txt").write_text(text)
    return run("build", folder / "corpus", "--out", folder / "out", "--workers", 0, *more)


def test_build_reports_json_on_stdout_and_the_table_on_stderr(tmp_path: Path) -> None:
    result = build(tmp_path, "--tokenizer", "bytes", "--shard-size", "40B", "--json")
    assert result.exit_code == 0
    report = json.loads(result.stdout)
    total = sum(map(len, TEXTS))
    assert (report["documents"], report["tokens"], report["bytes_per_token"]) == (3, total, 1.0)
    assert (report["shards"], report["written_shards"], report["kept_shards"]) == (2, 2, 0)
    assert report["dataset"] == str(tmp_path / "out") and report["skipped"] == {}
    assert "digest sha256:" in result.stderr and "bytes/token" in result.stderr
    quiet = build(tmp_path, "--tokenizer", "bytes", "--shard-size", "40B")
    assert quiet.stdout == "" and "2 kept" in quiet.stderr


def test_a_corpus_too_small_for_the_vocabulary_is_noted(tmp_path: Path) -> None:
    result = build(tmp_path, "--tokenizer", "bpe:5000", "--json")
    size = json.loads(result.stdout)["vocab_size"]
    assert 256 < size < 300 and f"too small for 5000 tokens; the tokenizer has {size}" in result.stderr


def test_build_names_the_places_of_what_it_left_out(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"body": "good"}\n{"text": "?"}\n' + "[]\n" * 12)
    arguments = ("build", tmp_path / "x.jsonl", "--out", tmp_path / "out", "--workers", 0, "--tokenizer", "bytes")
    result = run(*arguments, "--text-field", "body", "--on-bad", "skip", "--json")
    assert json.loads(result.stdout)["skipped"] == {"no field 'body'": 1, "not a JSON object": 12}
    assert "x.jsonl, line 2: no field 'body'" in result.stderr and "under skipped" in result.stderr


def test_the_suffix_chooses_files(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus/a.md").write_text("four")
    result = build(tmp_path, "--tokenizer", "bytes", "--suffix", ".md", "--json")
    assert json.loads(result.stdout)["tokens"] == 4


@pytest.mark.parametrize(
    ("size", "message"),
    [("5 parsecs", "is not a size"), ("0", "not positive"), ("-3MB", "not positive"), ("", "not a size")],
)
def test_sizes_that_are_none(tmp_path: Path, size: str, message: str) -> None:
    result = build(tmp_path, "--shard-size", size)
    assert result.exit_code == 2 and message in result.stderr


def test_verify(tmp_path: Path) -> None:
    folder = make_dataset(tmp_path, TEXTS).folder
    result = run("verify", folder, "--json")
    assert json.loads(result.stdout)["ok"] is True and "all digests match" in result.stderr
    (folder / "tokenizer.json").write_bytes(b"{}")
    with pytest.raises(DataError, match=r"is damaged:\n  tokenizer\.json: altered"):
        run("verify", folder)


def test_inspect(tmp_path: Path) -> None:
    folder = make_dataset(tmp_path, TEXTS).folder
    whole = json.loads(run("inspect", folder, "--json").stdout)
    assert whole["documents"] == 3 and whole["document_tokens"]["max"] == len(TEXTS[0])
    document = json.loads(run("inspect", folder, "--document", 2, "--json").stdout)
    assert (document["text"], document["tokens"]) == (TEXTS[2], len(TEXTS[2]))
    assert document["source"] == "corpus/00002.txt"
    assert "  | of two lines." in run("inspect", folder, "--document", 2).stdout
    with pytest.raises(DataError, match="document 3 does not exist; the dataset has 0 to 2"):
        run("inspect", folder, "--document", 3)


def test_inspect_shows_where_a_stream_is(tmp_path: Path) -> None:
    """Over the steps of two epochs, the one stream reads every document from its beginning to its end."""
    folder = make_dataset(tmp_path, TEXTS).folder
    stream = ("inspect", folder, "--stream", 0, "--streams", 1, "--segment", 8, "--window", 4, "--seed", 5, "--json")
    texts: dict[tuple[int, int], str] = {}
    for step in range(sum(-(-len(text) // 4) for text in TEXTS)):  # two epochs: a step is two blocks
        for part in json.loads(run(*stream, "--step", step + 1).stdout)["reads"]:
            key = (part["epoch"], part["document"])
            texts[key] = texts.get(key, "") + part["text"]
            assert part["end"] - part["begin"] == len(part["text"]) and part["of"] == len(TEXTS[part["document"]])
    assert [texts[epoch, number] for epoch in (0, 1) for number in range(3)] == TEXTS * 2
    result = run("inspect", folder, "--stream", 0)
    assert result.exit_code == 2 and "--stream needs --streams, --segment and --window" in result.stderr
    with pytest.raises(DataError, match="stream 1 does not exist"):
        run(*stream, "--stream", 1)


def test_inspect_shows_where_a_stream_of_a_run_is(tmp_path: Path) -> None:
    """From the beginning, and over a change of the number of streams, as the schedule says; then from a checkpoint."""
    texts = ["".join(chr(97 + n) for _ in range(30 + n)) for n in range(6)]
    folder = make_dataset(tmp_path, texts).folder
    run_directory = tmp_path / "run"
    run_directory.mkdir()
    config = f"data: {{dataset: {folder}, segment: 8, streams: 2}}\nmodel: {{window: 4}}\n"
    (run_directory / "config.yaml").write_text(config + f"run: {{directory: {run_directory}, steps: 50, seed: 5}}\n")
    attempts = [(0, 3), (4, 1), (6, 2)]  # (first step, streams); the second attempt ended before its first checkpoint
    lines = [
        {"event": "attempt", "start_step": step, "layout": {"streams": b}}
        for step, b in [(0, 3), (5, 4), *attempts[1:]]
    ]
    (run_directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"event": "att')
    schedule = StreamSchedule(np.array([len(t) for t in texts]), streams=3, segment=8, window=4, seed=5)
    cursor = schedule.start()
    for step in range(9):
        for begin, streams in attempts[1:]:
            if begin == step:
                schedule, cursor = schedule.resized(streams), cursor.resized(streams)
        plan, cursor = schedule.step(cursor)
        for stream in range(schedule.streams):
            shown = json.loads(
                run("inspect", "--run", run_directory, "--step", step + 1, "--stream", stream, "--json").stdout
            )
            first = shown["reads"][0]
            assert (first["document"], first["begin"]) == (plan.document[stream, 0], plan.offset[stream, 0])
            assert first["text"] == texts[first["document"]][first["begin"] : first["end"]]
    saved = Manifest(7, 7, 0, schedule.at(20).to_json(), {}, {}, Dataset.open(folder).digest, {}, {}, (), {})
    (run_directory / "checkpoints/step_00000007").mkdir(parents=True)
    (run_directory / "checkpoints/step_00000007/manifest.json").write_text(saved.dump())
    shown = json.loads(run("inspect", "--run", run_directory, "--step", 10, "--stream", 1, "--json").stdout)
    assert shown["reads"][0]["document"] == schedule.step(schedule.at(22))[0].document[1, 0]
    assert run("inspect").exit_code == run("inspect", folder, "--run", run_directory).exit_code == 2
    with pytest.raises(ConfigError, match="is not a run directory"):
        run("inspect", "--run", folder, "--stream", 0)


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from launch.commands.data import data; import click;"
        "[data.commands[name].get_help(click.Context(data.commands[name])) for name in data.commands];"
        "print(sorted({'numpy', 'pydantic', 'ray', 'torch', 'rich', 'tokenizers', 'fsspec'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_stats_count_lengths_and_sources(tmp_path: Path) -> None:
    """Against the texts themselves: with bytes, tokens are characters."""
    folder = make_dataset(tmp_path, ["a" * 1, "b" * 7, "c" * 8, "d" * 15, "e" * 16]).folder
    found = json.loads(run("stats", folder, "--json", "--plots", tmp_path / "plots").stdout)
    bins = [(entry["from"], entry["to"], entry["documents"], entry["tokens"]) for entry in found["length_histogram"]]
    assert bins == [(1, 2, 1, 1), (2, 4, 0, 0), (4, 8, 1, 7), (8, 16, 2, 23), (16, 32, 1, 16)]
    assert (found["document_tokens"]["median"], found["document_tokens"]["mean"]) == (8, 47 / 5)
    assert [(source["name"], source["share"]) for source in found["sources"]] == [("corpus", 1.0)]
    for name in ("lengths.png", "sources.png"):
        assert (tmp_path / "plots" / name).read_bytes().startswith(b"\x89PNG")
    assert "8 to 15" in run("stats", folder).stdout


def test_the_card_says_what_was_built_and_leaves_other_readmes_alone(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus/0.txt").write_text("some text")
    (tmp_path / "corpus/1.txt").write_bytes(b"")
    arguments = ("build", tmp_path / "corpus", "--out", tmp_path / "out", "--workers", 0, "--tokenizer", "bytes")
    report = json.loads(run(*arguments, "--on-bad", "skip", "--json").stdout)
    card = json.loads((tmp_path / "out/card.json").read_text())
    assert (card["documents"], card["tokens"], card["left_out"]) == (1, 9, {"empty": 1})
    assert card["digest"] == report["digest"] and card["built"]["tokens_per_second"] == report["tokens_per_second"] > 0
    readme = (tmp_path / "out/README.md").read_text()
    assert report["digest"] in readme and "| corpus | 1 | 9 | 100.0% | 1 empty |" in readme
    assert (tmp_path / "out/lengths.png").read_bytes().startswith(b"\x89PNG")
    (tmp_path / "out/README.md").write_text("mine")
    run(*arguments, "--on-bad", "skip")  # nothing is written again, so the speed stays
    assert (tmp_path / "out/README.md").read_text() == "mine"
    assert json.loads((tmp_path / "out/card.json").read_text()) == card


def test_webdataset_tars_of_others_are_indexed_and_not_copied(tmp_path: Path) -> None:
    """Written by the library itself, with members of other kinds in between; read by ours and by webdataset."""
    import webdataset

    texts = ["one document", "another of other length", "a third"]
    (tmp_path / "bytes.json").write_text('{"kind": "bytes", "vocab_size": 256}')
    with webdataset.TarWriter(str(tmp_path / "theirs.tar"), encoder=False) as writer:
        for number, text in enumerate(texts):
            ids = np.frombuffer(text.encode(), dtype=np.uint8).astype("<u4").tobytes()
            writer.write({"__key__": f"d/{number}", "txt": text.encode(), "ids": ids})
    arguments = ("index", tmp_path / "theirs.tar", "--tokenizer", tmp_path / "bytes.json", "--dtype", "uint32")
    with pytest.raises(DataError, match=r"no member ends in \.tokens; --extension"):
        run(*arguments, "--out", tmp_path / "out")
    made = json.loads(run(*arguments, "--out", tmp_path / "out", "--extension", "ids", "--json").stdout)
    assert (made["documents"], made["tokens"]) == (3, sum(map(len, texts)))
    assert (tmp_path / "out/shard-000000.tar").is_symlink()
    with Dataset.open(tmp_path / "out") as dataset:
        for number, text in enumerate(texts):
            assert bytes(dataset.tokens(number, 0, len(text)).astype(np.uint8)).decode() == text
        assert dataset.source(1)["source"] == "d/1"
    assert verify(tmp_path / "out")[1] == []
    with pytest.raises(DataError, match="is not empty"):
        run(*arguments, "--out", tmp_path / "out", "--extension", "ids")
    with pytest.raises(DataError, match="outside the tokenizer's vocabulary"):
        run(*arguments, "--out", tmp_path / "two", "--extension", "ids", "--dtype", "uint16", "--extension", "txt")


def test_facts_are_put_into_a_corpus_that_is_there(tmp_path: Path) -> None:
    parts = {part: {f"{part}.txt": Text(b"a line of text\n" * 300, 1.0)} for part in ("train", "validation")}
    write_corpus(tmp_path / "text", "made for a test", parts)
    arguments = ("corpus", "facts", "--from", tmp_path / "text", "--window", 8, "--every", 100, "--copies", 3)
    result = run(*arguments, "--out", tmp_path / "facts", "--json")
    made = json.loads(result.stdout)
    assert made["train"] == ["train.0.txt", "train.1.txt", "train.2.txt"] and len(made["validation"]) == 3
    assert "3 training documents, 3 held out" in result.stderr and "made for a test" in made["origin"]
    questions = (tmp_path / "facts/questions/validation.jsonl").read_text().splitlines()
    assert 90 < len(questions) <= 135
    near = run(*arguments, "--farthest", 5, "--at-once", 1, "--out", tmp_path / "near", "--json")
    assert "1 to 5 windows" in near.stderr and "at most 1 at a time" in near.stderr
    twice = run(*arguments, "--from", tmp_path, "--out", tmp_path / "x")
    assert twice.exit_code == 2 and "give --from only once" in twice.output
    with pytest.raises(DataError, match="no corpus; `brt data corpus books"):
        run("corpus", "facts", "--from", tmp_path / "absent", "--out", tmp_path / "x")
    with pytest.raises(DataError, match="holds something else"):
        run(*arguments, "--out", tmp_path / "facts")
