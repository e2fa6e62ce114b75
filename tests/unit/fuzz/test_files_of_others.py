"""Whatever a file holds, a command that reads it succeeds or ends with one message, in bounded time and memory."""

import json
import math
import shutil
import tarfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brt_dist.checkpoint.manifest import MANIFEST, _digest, folder_name
from brt_dist.checkpoint.storage import FolderStorage
from brt_dist.config.loading import load
from brt_dist.config.schema import Config
from brt_dist.data.dataset import Dataset
from brt_dist.data.facts import facts_of
from brt_dist.data.inspect import describe_dataset, describe_document
from brt_dist.errors import BrtError
from launch.cli import brt
from launch.commands.status import describe
from launch.report.page import write_report
from pipelines.build import BuildSettings, build
from pipelines.statistics import statistics
from pipelines.verify import verify
from tests.checkpoints import make_checkpoint
from tests.datasets import make_dataset
from tests.unit.fuzz.bounds import EXAMPLES, LARGE, altered, damaged, large, read, values

few = settings(max_examples=EXAMPLES, deadline=None)
FILES = ("dataset.json", "documents.npy", "hashes.npy", "shard-000000.index.json", "shard-000000.tar", "tokenizer.json")


def brt_runs(*arguments: object) -> None:
    """A command of brt in this process, as its entry point calls it."""
    brt.main(args=[str(argument) for argument in arguments], prog_name="brt", standalone_mode=False)


# ---- datasets ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dataset")
    return make_dataset(folder, ["one text", "a second one", "third"]).folder


def use(folder: Path) -> None:
    """What the commands of `brt data` and the first step of a run do with a dataset."""
    with Dataset.open(folder) as data:
        facts_of(data)
        describe_dataset(data)
        for document in range(min(data.documents, 3)):
            describe_document(data, document, 100)


def all_of(folder: Path) -> None:
    for action in (use, statistics, verify):
        read(lambda: action(folder))  # noqa: B023 - called at once


@pytest.mark.parametrize("name", FILES)
@given(data=st.data())
@few
def test_a_damaged_file_of_a_dataset(
    name: str, data: st.DataObject, dataset: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp() / "damaged_dataset"
    shutil.copytree(dataset, folder, dirs_exist_ok=True)
    original = (dataset / name).read_bytes()
    changed = data.draw(damaged(original))
    if name.endswith(".json") and data.draw(st.booleans()):
        changed = json.dumps(data.draw(altered(json.loads(original)))).encode()
    (folder / name).write_bytes(changed)
    all_of(folder)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", LARGE)
def test_a_large_file_of_a_dataset(name: str, kind: str, dataset: Path, tmp_path: Path) -> None:
    shutil.copytree(dataset, tmp_path / "d")
    (tmp_path / "d" / name).write_bytes(large(kind))
    all_of(tmp_path / "d")
    if name not in ("hashes.npy", "shard-000000.index.json", "tokenizer.json"):
        with pytest.raises(BrtError, match=name):
            use(tmp_path / "d")


def npy(array: Any) -> bytes:
    out = BytesIO()
    np.lib.format.write_array(out, np.asarray(array), allow_pickle=True)
    return out.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x93NUMPY",
        b"\x93NUMPY\x01\x00\xff\xff{",
        b"\x93NUMPY\x02\x00\xff\xff\xff\x7f{",
        npy([[{}] * 3] * 2),  # objects
        npy(np.zeros((2, 4), dtype="<i8")),
        npy(np.zeros((2, 3), dtype="<f8")),
        npy(np.asfortranarray(np.ones((2, 3), dtype="<i8"))),
        npy(np.zeros((2, 3), dtype="<i8")),  # documents without tokens
        npy(np.array([[0, 0, 0], [-1, -5, 4]], dtype="<i8")),
        npy(np.array([[1 << 62, 0, 0], [8, 12, 5]], dtype="<i8")),
        npy(np.array([[512, 512, 512], [1 << 40, 1, 1]], dtype="<i8")),
    ],
)
def test_tables_of_documents_that_are_none(content: bytes, dataset: Path, tmp_path: Path) -> None:
    shutil.copytree(dataset, tmp_path / "d")
    (tmp_path / "d" / "documents.npy").write_bytes(content)
    all_of(tmp_path / "d")
    with pytest.raises(BrtError, match=r"documents\.npy"):
        use(tmp_path / "d")


# ---- runs -------------------------------------------------------------------------------------------------------

EVENTS = [
    {"event": "attempt", "time": 1.0, "attempt": 1, "start_step": 0, "layout": {"tensor": 1, "streams": 2}},
    {"event": "step", "time": 2.0, "attempt": 1, "step": 1, "loss": 2.0, "bits_per_token": 3.0, "tokens": 64},
    {"event": "evaluation", "time": 2.5, "step": 1, "dataset": "validation", "memory": "carried", "bits_per_token": 1},
    {"event": "sample", "time": 2.6, "step": 1, "prompt": "a", "text": "b"},
    {"event": "checkpoint", "time": 3.0, "step": 1, "path": "checkpoints/step_00000001", "seconds": 0.1},
    {"event": "end", "time": 4.0, "status": "finished", "exit_code": 0},
]
CONFIG = "data: {dataset: books}\nrun: {directory: r, steps: 10}\noptimizer: {warmup_steps: 2}\n"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "config.yaml").write_text(CONFIG)
    (tmp_path / "attempts/001").mkdir(parents=True)
    (tmp_path / "attempts/001/attempt.json").write_text('{"start": 1.0, "end": 4.0, "verdict": "finished"}')
    return tmp_path


def look_at(run: Path) -> None:
    read(lambda: describe(run))
    read(lambda: brt_runs("status", run))
    read(lambda: write_report([run], run / "report.html"))


@given(data=st.data())
@few
def test_events(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp() / "events"
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(CONFIG)
    lines = [json.dumps(data.draw(altered(event)) if data.draw(st.booleans()) else event) for event in EVENTS]
    text = "\n".join(lines).encode() + b"\n"
    (folder / "metrics.jsonl").write_bytes(data.draw(damaged(text)) if data.draw(st.booleans()) else text)
    look_at(folder)


@pytest.mark.parametrize("kind", LARGE)
@pytest.mark.parametrize("name", ["metrics.jsonl", "config.yaml", "submission.json", "attempts/001/attempt.json"])
def test_large_files_of_a_run(name: str, kind: str, run: Path) -> None:
    (run / name).write_bytes(large(kind) + b"\n")
    read(lambda: describe(run))


RECORDS = {
    "submission.json": {"backend": "slurm", "job": "1", "number": 1, "submitted": 1.0, "details": {}},
    "attempts/001/attempt.json": {"start": 1.0, "end": 2.0, "nodes": ["a"], "layout": {"tensor": 1}, "exit_code": 0,
                                  "verdict": "lost_node", "failure": {"code": 16, "reason": "x", "rank": 0}},
    "tracking/health.json": {"state": "away", "since": 1.0, "problem": "x"},
    "provenance.json": {"run.steps": "default"},
    "adjustments.json": {"skipped": [[1, 2]], "lowered": [[1, 0.5]]},
}  # fmt: skip


@pytest.mark.parametrize("name", RECORDS)
@given(data=st.data())
@few
def test_records_of_a_run(name: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp() / "records"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / name).parent.mkdir(parents=True)
    (folder / "config.yaml").write_text(CONFIG)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in EVENTS))
    (folder / name).write_text(json.dumps(data.draw(altered(RECORDS[name]))))
    look_at(folder)


# ---- checkpoints ------------------------------------------------------------------------------------------------


def look_at_checkpoints(folder: Path) -> None:
    for command in ("list", "show", "verify"):
        read(lambda: brt_runs("checkpoint", command, folder))  # noqa: B023 - called at once
    read(lambda: brt_runs("checkpoint", "prune", folder, "--dry-run"))


@given(data=st.data())
@few
def test_manifests(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Also manifests with a matching digest."""
    folder = tmp_path_factory.getbasetemp() / "checkpoints"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    make_checkpoint(FolderStorage(folder), 1)
    path = folder / folder_name(1) / MANIFEST
    values = json.loads(path.read_text())
    del values["digest"]
    changed = data.draw(altered(values))
    if isinstance(changed, dict):
        changed["digest"] = _digest(changed)
    path.write_text(json.dumps(changed))
    look_at_checkpoints(folder)


@pytest.mark.parametrize("kind", LARGE)
def test_a_large_manifest(kind: str, tmp_path: Path) -> None:
    make_checkpoint(FolderStorage(tmp_path), 1)
    (tmp_path / folder_name(1) / MANIFEST).write_bytes(large(kind))
    look_at_checkpoints(tmp_path)


# ---- sources ----------------------------------------------------------------------------------------------------


def tar_of(members: list[tuple[str, bytes]]) -> bytes:
    out = BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, BytesIO(content))
    return out.getvalue()


TAR = tar_of([("a.txt", b"one text"), ("b.json", b'{"text": "two"}'), ("c.txt", b"three")])


def built(source: Path, out: Path) -> None:
    for on_bad in ("error", "skip"):
        shutil.rmtree(out, ignore_errors=True)
        settings = BuildSettings((str(source),), tokenizer="bytes", on_bad=on_bad)  # type: ignore[arg-type]
        read(lambda: build(settings, out, workers=0))  # noqa: B023 - called at once


@pytest.mark.parametrize("suffix", ["tar", "jsonl", "txt", "jsonl.gz", "jsonl.zst", "parquet"])
@given(data=st.data())
@few
def test_damaged_sources(suffix: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    source = tmp_path_factory.getbasetemp() / f"source.{suffix}"
    source.write_bytes(data.draw(damaged(SOURCES[suffix]())))
    built(source, tmp_path_factory.getbasetemp() / "out")


@pytest.mark.parametrize("suffix", ["tar", "jsonl", "txt", "jsonl.gz", "jsonl.zst", "parquet"])
@pytest.mark.parametrize("kind", LARGE)
def test_large_sources(suffix: str, kind: str, tmp_path: Path) -> None:
    (tmp_path / f"source.{suffix}").write_bytes(large(kind))
    built(tmp_path / f"source.{suffix}", tmp_path / "out")


def test_metadata_of_a_tar_nested_too_deep(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(tar_of([("a.json", large("deep list")), ("b.txt", b"good")]))
    error = read(lambda: build(BuildSettings((str(tmp_path / "x.tar"),), tokenizer="bytes"), tmp_path / "o", workers=0))
    assert "x.tar, a: not JSON" in str(error)


def _gzip() -> bytes:
    import gzip

    return gzip.compress(b'{"text": "one"}\n{"text": "two"}\n')


def _zstd() -> bytes:
    import pyarrow

    return bytes(pyarrow.compress(b'{"text": "one"}\n{"text": "two"}\n', codec="zstd", asbytes=True))


def _parquet() -> bytes:
    import pyarrow
    from pyarrow import parquet

    out = BytesIO()
    parquet.write_table(pyarrow.table({"text": ["one", "two", None]}), out)
    return out.getvalue()


SOURCES: dict[str, Callable[[], bytes]] = {
    "tar": lambda: TAR,
    "jsonl": lambda: b'{"text": "one"}\n{"text": "two"}\n',
    "txt": "some text, \u00e9".encode,
    "jsonl.gz": _gzip,
    "jsonl.zst": _zstd,
    "parquet": _parquet,
}


# ---- configs ----------------------------------------------------------------------------------------------------


@given(data=st.data())
@few
def test_configs(data: st.DataObject) -> None:
    full: Any = {"data": {"dataset": "books"}, "run": {"directory": "r", "steps": 10}}
    plain = json.loads(load([json.dumps(full)]).config.model_dump_json())
    changed = data.draw(altered(plain))
    read(lambda: load([json.dumps(changed)]))
    assert math.isfinite(Config.model_validate(plain).optimizer.learning_rate)


@pytest.mark.parametrize("kind", LARGE)
def test_large_configs(kind: str, tmp_path: Path) -> None:
    for size in (1 << 20, 1 << 17):
        (tmp_path / "c.yaml").write_bytes(large(kind)[: size - 2] + b"}")
        assert read(lambda: load([tmp_path / "c.yaml"])) is not None
        assert read(lambda: load([f"model: {{{', '.join(f'k{n}: 1' for n in range(9000))}}}"])) is not None


@given(values)
@few
def test_any_value_as_an_override(value: Any) -> None:
    for key in ("model.mixers", "data.mixture", "run.tracking", "parallel.recompute", "launch", "optimizer.betas"):
        read(lambda: load(['{"data": {"dataset": "b"}, "run": {"directory": "r", "steps": 1}}'], [f"{key}={value!r}"]))  # noqa: B023
