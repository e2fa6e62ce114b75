"""Reading parts of files: local, remote, and through the cache of a node; and headers that do not fit their file."""

import errno
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from brt_dist.checkpoint import node_cache
from brt_dist.checkpoint.node_cache import NodeCache
from brt_dist.checkpoint.ranges import LocalFile, RangeReader
from brt_dist.checkpoint.tensor_header import read_header
from brt_dist.errors import CheckpointError


class Remote(RangeReader):
    """Bytes in memory; notes the ranges that it is asked for."""

    def __init__(self, content: bytes) -> None:
        self.content, self.asked = content, list[tuple[int, int]]()

    @property
    def size(self) -> int:
        return len(self.content)

    def read_into(self, begin: int, buffer: memoryview) -> None:
        self.asked.append((begin, len(buffer)))
        buffer[:] = self.content[begin : begin + len(buffer)]


CONTENT = bytes(range(256)) * 4


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(node_cache, "_BLOCK", 100)
    return tmp_path / "cache"


def blocks(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*/*") if not path.name.endswith(".lock"))


def test_each_block_is_fetched_once_for_all_processes_of_a_node(folder: Path) -> None:
    remotes = [Remote(CONTENT) for _ in range(4)]
    caches = [NodeCache(folder) for _ in remotes]
    readers = [cache.reader(remote, "digest") for cache, remote in zip(caches, remotes, strict=True)]
    found: list[bytes] = []
    threads = [threading.Thread(target=lambda r=reader: found.append(r.read(150, 500))) for reader in readers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [CONTENT[150:650]] * 4
    asked = sorted(part for remote in remotes for part in remote.asked)
    assert asked == [(begin, 100) for begin in range(100, 700, 100)]
    assert readers[0].read(1000, 24) == CONTENT[1000:]  # the last block is shorter
    assert blocks(folder) == ["1", "10", "2", "3", "4", "5", "6"]


def test_the_last_process_removes_the_blocks_and_so_does_the_next_after_a_kill(folder: Path) -> None:
    first, second = NodeCache(folder), NodeCache(folder)
    for cache in (first, second):
        cache.reader(Remote(CONTENT), "digest").read(0, 10)
    first.close()
    assert blocks(folder) == ["0"]
    second.close()
    assert blocks(folder) == []
    (folder / "digest").mkdir()
    (folder / "digest" / "0").write_bytes(b"left by a process that was killed")
    assert NodeCache(folder).reader(Remote(CONTENT), "digest").read(0, 10) == CONTENT[:10]


def test_on_a_full_disk_it_is_read_without_the_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    remote = Remote(CONTENT)
    reader = NodeCache(folder).reader(remote, "digest")
    monkeypatch.setattr(Path, "write_bytes", full)
    assert reader.read(150, 100) == CONTENT[150:250]
    assert blocks(folder) == []


def test_the_end_of_a_local_file_is_an_error_and_its_hash_is_right(tmp_path: Path) -> None:
    from hashlib import sha256

    (tmp_path / "file").write_bytes(CONTENT)
    file = LocalFile(tmp_path / "file")
    assert file.read(1000, 24) == CONTENT[1000:] and file.sha256() == sha256(CONTENT).hexdigest()
    with pytest.raises(OSError, match="ends at 1024 bytes"):
        file.read(1000, 25)
    file.close()


def described(**tensors: Any) -> bytes:
    text = json.dumps(tensors).encode()
    return len(text).to_bytes(8, "little") + text


ONE = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 8,
        described(a=ONE),  # no values
        described(a=ONE) + bytes(9),  # more than its tensors
        described(a={**ONE, "data_offsets": [8, 16]}) + bytes(16),  # a hole
        described(a=ONE, b=ONE) + bytes(8),  # on top of each other
        described(a={**ONE, "shape": [-2]}) + bytes(8),
        described(a={**ONE, "dtype": "OBJECT"}) + bytes(8),
        described(a={**ONE, "shape": "2"}) + bytes(8),
        described(a=[]) + bytes(8),
        (4).to_bytes(8, "little") + b"[[]]",
        (200_000).to_bytes(8, "little") + b"[" * 200_000,
    ],
)
def test_a_header_that_does_not_fit_its_file_is_refused(content: bytes) -> None:
    with pytest.raises(CheckpointError, match="FILE is not a readable tensor file"):
        read_header(Remote(content), "FILE")


def test_a_header_says_where_tensors_lie() -> None:
    content = described(__metadata__={"format": "pt"}, b={**ONE, "data_offsets": [8, 16]}, a=ONE) + bytes(16)
    found = read_header(Remote(content), "FILE")
    assert {name: len(content) - placed.begin for name, placed in found.items()} == {"a": 16, "b": 8}
