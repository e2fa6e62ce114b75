"""Checkpoints in an object store: the same contract, on a server that speaks S3."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import s3fs
import torch

from brt_dist.checkpoint.loader import Checkpoint, open_newest
from brt_dist.checkpoint.manifest import folder_name
from brt_dist.checkpoint.open_storage import open_storage
from brt_dist.checkpoint.saver import Saver
from brt_dist.checkpoint.storage import Storage
from brt_dist.errors import CheckpointError, PlatformError
from brt_dist.parallel.layout import single_process
from brt_dist.parallel.pieces import LogicalTensor, Piece, Region
from launch.cli import main
from tests.checkpoints import alone, make_checkpoint, manifest_of
from tests.object_store import ObjectStore, object_store

TABLE = LogicalTensor("weights/embedding.weight", (3, 2), torch.float32)
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def store() -> Iterator[ObjectStore]:
    with object_store() as running:
        yield running


@pytest.fixture
def url(store: ObjectStore) -> Iterator[str]:
    """A prefix of its own for each test."""
    yield f"{store.url}/{uuid.uuid4().hex}"
    store.fault = None


def newest(storage: Storage, log: list[str]) -> Checkpoint | None:
    return open_newest(storage, 0, 1, lambda problem: [problem], lambda manifest: None, log.append)


def brt(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(["checkpoint", *arguments])
    assert isinstance(end.value.code, int)
    return end.value.code


def damage(url: str) -> None:
    files = s3fs.S3FileSystem()
    content = bytearray(files.cat_file(url))
    content[-1] ^= 1
    files.pipe_file(url, bytes(content))


def test_what_was_saved_comes_back(url: str, store: ObjectStore) -> None:
    with single_process():
        storage = open_storage(url)
        assert newest(storage, []) is None
        saver = Saver(storage, alone(), lambda step: None)
        for step in (1, 2):
            saver.save(manifest_of(step, [], {}), [Piece(TABLE, Region.whole((3, 2)), torch.full((6,), float(step)))])
        saver.wait()
        # the third one fails in the middle; the message is clear and those before it stay
        store.fault = lambda method, path: method in ("PUT", "POST") and "step_00000003" in path
        saver.save(manifest_of(3, [], {}), [Piece(TABLE, Region.whole((3, 2)), torch.full((6,), 3.0))])
        with pytest.raises(
            CheckpointError, match=r"could not save checkpoint step_00000003: .*s3://.*earlier checkpoints are unt"
        ):
            saver.wait()
        saver.close()
    store.fault = None
    fresh = open_storage(url)
    assert fresh.latest() == folder_name(2)
    checkpoint = newest(fresh, [])
    assert checkpoint is not None
    with checkpoint:
        assert checkpoint.manifest.step == 2
        assert checkpoint.whole(TABLE.name).tolist() == [[2, 2], [2, 2], [2, 2]]


def test_a_save_that_was_killed_is_no_checkpoint_and_is_swept(url: str, store: ObjectStore) -> None:
    make_checkpoint(open_storage(url), 1)
    program = (
        "import os, signal, sys\n"
        "from brt_dist.checkpoint.open_storage import open_storage\n"
        "storage = open_storage(sys.argv[1]); storage.prepare('step_00000002')\n"
        "with storage.create('step_00000002', 'weights/embedding.safetensors') as file: file.write(b'x' * 99)\n"
        "with storage.create('step_00000002', 'weights/layers.0.safetensors') as file:\n"
        "    file.write(b'half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", program, url], env={**os.environ}, check=False, cwd=ROOT)
    assert done.returncode == -signal.SIGKILL
    storage = open_storage(url)
    half = f"{url}/{folder_name(2)}"
    assert s3fs.S3FileSystem(use_listings_cache=False).exists(f"{half}/weights/embedding.safetensors")
    assert storage.names() == [folder_name(1)]
    make_checkpoint(storage, 3)
    assert storage.names() == [folder_name(1), folder_name(3)]
    assert not s3fs.S3FileSystem(use_listings_cache=False).exists(half)


def test_a_damaged_object_is_named_and_the_one_before_it_used(
    url: str, store: ObjectStore, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = open_storage(url)
    for step in (1, 2, 3):
        make_checkpoint(storage, step)
    assert brt("verify", url) == 0
    damage(f"{url}/{folder_name(3)}/weights/embedding.safetensors")
    s3fs.S3FileSystem().rm_file(f"{url}/{folder_name(2)}/memory/layers.0.safetensors")
    capsys.readouterr()
    assert brt("verify", url) == 12
    err = capsys.readouterr().err
    assert f"{url}/{folder_name(3)}/weights/embedding.safetensors was altered" in err
    assert f"{url}/{folder_name(2)}/memory/layers.0.safetensors is missing" in err
    log: list[str] = []
    checkpoint = newest(open_storage(url), log)
    assert checkpoint is not None and checkpoint.manifest.step == 1 and len(log) == 2
    checkpoint.close()


def test_ranks_of_a_node_fetch_an_object_once(
    url: str, store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    make_checkpoint(open_storage(url), 1)
    asked: list[str] = []

    def note(method: str, path: str) -> bool:
        if method == "GET" and path.endswith("embedding.safetensors"):
            asked.append(path)
        return False

    storages = [open_storage(url) for _ in range(3)]  # of three ranks
    checkpoints = [Checkpoint.open(storage, folder_name(1)) for storage in storages]
    for rank, checkpoint in enumerate(checkpoints):
        store.fault = note
        part = Region.whole((6, 4)).part(8 * rank, 8 * rank + 8)
        assert checkpoint.part(TABLE.name, part).tolist() == [1.0] * 8
        assert asked == [asked[0]]
    for checkpoint in checkpoints:
        assert list(tmp_path.glob("brt-checkpoints-*/*/0"))
        checkpoint.close()
    assert not list(tmp_path.glob("brt-checkpoints-*/*/0"))


def test_memory_is_removed_from_a_checkpoint(url: str, store: ObjectStore) -> None:
    storage = open_storage(url)
    made = make_checkpoint(storage, 1)
    rest = made.without_memory()
    gone = {entry.name for entry in made.files} - {entry.name for entry in rest.files}
    storage.shrink(folder_name(1), rest.dump(), gone)
    assert gone and all(storage.size(folder_name(1), name) is None for name in gone)
    checkpoint = newest(open_storage(url), [])
    assert checkpoint is not None and not checkpoint.manifest.has_memory
    checkpoint.close()


def test_commands(url: str, store: ObjectStore, capsys: pytest.CaptureFixture[str]) -> None:
    storage = open_storage(url)
    for step in (1, 2, 3):
        make_checkpoint(storage, step)
    assert brt("list", url, "--json") == 0
    rows = json.loads(capsys.readouterr().out)["checkpoints"]
    assert [(row["step"], row["problem"]) for row in rows] == [(1, None), (2, None), (3, None)]
    assert brt("show", f"{url}/{folder_name(2)}", "--json") == 0
    assert json.loads(capsys.readouterr().out)["step"] == 2
    assert brt("prune", url, "--keep", "1", "--best", "0") == 0
    assert storage.names() == [folder_name(3)]
    assert not s3fs.S3FileSystem(use_listings_cache=False).exists(f"{url}/{folder_name(1)}")


def test_a_server_that_fails_is_one_clear_message(
    url: str, store: ObjectStore, capsys: pytest.CaptureFixture[str]
) -> None:
    make_checkpoint(open_storage(url), 1)
    store.fault = lambda method, path: path.endswith("manifest.json")
    assert brt("verify", url) == 18
    assert "cannot reach the checkpoints" in capsys.readouterr().err
    # the newest may be whole: an older one must not be taken in its place
    with pytest.raises(PlatformError, match=r"cannot read checkpoint .*step_00000001"):
        newest(open_storage(url), [])
    store.fault = lambda method, path: True
    assert brt("list", url) == 18
    with pytest.raises(PlatformError, match="cannot list the checkpoints"):
        newest(open_storage(url), [])


def test_a_bucket_that_is_not_there_and_a_protocol_that_is_none(
    store: ObjectStore, capsys: pytest.CaptureFixture[str]
) -> None:
    assert brt("list", "s3://nowhere/run") == 18
    assert "bucket nowhere does not exist" in capsys.readouterr().err
    assert brt("list", "s4://nowhere/run") == 18
    assert "s4" in capsys.readouterr().err
