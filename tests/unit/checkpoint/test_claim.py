"""One run at a time saves to a folder, also where the file system has no locks."""

import errno
import fcntl
import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from brt_dist.checkpoint.claim import claimed
from brt_dist.errors import PlatformError

HELD = "another run is saving its checkpoints to"


def refuse(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def flock(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)


def never(message: str) -> None:
    raise AssertionError(message)


def test_a_lock_is_held_by_one(tmp_path: Path) -> None:
    with claimed(tmp_path, never), pytest.raises(PlatformError, match=HELD), claimed(tmp_path, never):
        pass
    with claimed(tmp_path, never):
        assert not (tmp_path / ".owner").exists()


@pytest.mark.parametrize("name", ["ENOLCK", "ENOTSUP", "EOPNOTSUPP", "ENOSYS"])
def test_where_there_are_no_locks_a_file_is_held_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    refuse(monkeypatch, getattr(errno, name))
    said: list[str] = []
    with claimed(tmp_path, said.append):
        (line,) = said
        assert "has no locks (E" in line and str(tmp_path / ".owner") in line and HELD not in line
        with pytest.raises(PlatformError, match=rf"{HELD}.*\(process {os.getpid()} on "), claimed(tmp_path, print):
            pass
        assert (tmp_path / ".owner").exists()
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_another_error_is_told_as_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch, errno.EIO)
    with pytest.raises(PlatformError, match=r"cannot lock .*: Input/output error"), claimed(tmp_path, never):
        pass
    with pytest.raises(PlatformError, match=r"cannot lock .*: No such file"), claimed(tmp_path / "none", never):
        pass


def test_what_a_killed_process_left_is_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch, errno.ENOTSUP)
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    process.wait()
    owners = [
        {"host": socket.gethostname(), "pid": process.pid, "started": 1.0},  # gone
        {"host": socket.gethostname(), "pid": os.getpid(), "started": 1.0},  # another has its number now
        {"host": "elsewhere", "pid": 1, "started": 1.0},  # shows no sign of life
    ]
    for owner in [*map(json.dumps, owners), "", "{"]:
        (tmp_path / ".owner").write_text(owner)
        with claimed(tmp_path, print, beat_seconds=0.01):
            assert json.loads((tmp_path / ".owner").read_text())["pid"] == os.getpid()


def test_a_holder_on_another_host_is_known_by_its_signs_of_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse(monkeypatch, errno.ENOTSUP)
    (tmp_path / ".owner").write_text(json.dumps({"host": "elsewhere", "pid": 7, "started": 1.0}))
    os.utime(tmp_path / ".owner", (0, 0))
    monkeypatch.setattr("brt_dist.checkpoint.claim.time.sleep", lambda seconds: os.utime(tmp_path / ".owner", (9, 9)))
    with pytest.raises(PlatformError, match=rf"{HELD}.*\(process 7 on elsewhere\)"), claimed(tmp_path, print):
        pass


def test_the_holder_gives_signs_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(monkeypatch, errno.ENOTSUP)
    touched = threading.Event()
    utime = os.utime

    def noted(path: Any, *arguments: Any) -> None:
        utime(path, *arguments)
        touched.set()

    monkeypatch.setattr(os, "utime", noted)
    with claimed(tmp_path, print, beat_seconds=0.01):
        assert touched.wait(60)
