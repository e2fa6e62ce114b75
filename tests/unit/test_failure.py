"""Why a rank failed: from real exceptions to the record that others read."""

import errno
import json
import threading
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from brt_dist.errors import BrtError, ConfigError, DataError, DivergedError, ExitCode, PlatformError
from brt_dist.failure import Failure, exit_code, exit_code_of
from brt_dist.files import write_once
from brt_dist.worker import Worker


def store_timeout() -> Exception:
    """A key that is never written."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with pytest.raises(RuntimeError) as found:
        store.wait(["absent"], timedelta(milliseconds=50))
    return found.value


def nobody_listens() -> Exception:
    with pytest.raises(RuntimeError) as found:
        dist.TCPStore("127.0.0.1", 1, is_master=False, timeout=timedelta(milliseconds=100))
    return found.value


def port_in_use() -> Exception:
    taken = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with pytest.raises(RuntimeError) as found:
        dist.TCPStore("127.0.0.1", taken.port, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=1))
    return found.value


def test_what_torch_raises_is_told_by_its_type() -> None:
    late, gone, taken = store_timeout(), nobody_listens(), port_in_use()
    assert [type(error) for error in (late, gone, taken)] == [
        dist.DistStoreError,
        dist.DistNetworkError,
        dist.DistNetworkError,
    ]
    assert [exit_code_of(error) for error in (late, gone, taken)] == [
        ExitCode.HUNG,
        ExitCode.LOST_NODE,
        ExitCode.ENVIRONMENT,
    ]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (torch.OutOfMemoryError("Connection reset by peer"), ExitCode.OUT_OF_MEMORY),  # the type counts, not the text
        (MemoryError(), ExitCode.OUT_OF_MEMORY),
        (dist.DistStoreError("Connection reset by peer"), ExitCode.HUNG),
        (dist.DistBackendError("NCCL error: ncclRemoteError"), ExitCode.LOST_NODE),
        (dist.DistBackendError("[Rank 1] Watchdog caught collective operation timeout: ..."), ExitCode.HUNG),
        (RuntimeError("[/pytorch/gloo/pair.cc:534] Connection closed by peer [127.0.0.1]:1"), ExitCode.LOST_NODE),
        (RuntimeError("[gloo/unbound_buffer.cc:72] Timed out waiting 60000ms for recv"), ExitCode.HUNG),
        (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), ExitCode.LOST_NODE),
        (OSError(errno.ENOSPC, "No space left on device"), ExitCode.ENVIRONMENT),
        (OSError(errno.EACCES, "Permission denied"), ExitCode.INTERNAL),
        (RuntimeError("shapes do not match"), ExitCode.INTERNAL),
        (DataError("Connection reset by peer"), ExitCode.BAD_DATA),
        (DivergedError("nan", 3), ExitCode.DIVERGED),
        (BrtError("x"), ExitCode.INTERNAL),
    ],
    ids=lambda value: value.name if isinstance(value, ExitCode) else type(value).__name__,
)
def test_the_code_of_an_exception(error: BaseException, code: ExitCode) -> None:
    assert exit_code_of(error) == code


def test_a_record_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    try:
        raise RuntimeError("why")
    except RuntimeError as error:
        failure = Failure.of(error, rank=3, step=7)
    assert (failure.code, failure.reason, failure.type, failure.step) == (ExitCode.INTERNAL, "why", "RuntimeError", 7)
    assert "in test_a_record" in failure.traceback and failure.time > 1.7e9
    assert failure.write(tmp_path / "a" / "record.json")
    assert Failure.read(tmp_path / "a" / "record.json") == failure
    assert failure.summary == f"rank 3 on {failure.host} failed: RuntimeError: why"


def test_a_divergence_knows_its_own_step_and_a_user_gets_no_traceback() -> None:
    failure = Failure.of(DivergedError("loss nan", 12), rank=0, step=13)
    assert (failure.step, failure.traceback, failure.detail) == (12, "", "loss nan")


def test_the_first_record_stays(tmp_path: Path) -> None:
    path = tmp_path / "rank_001.error.json"
    first, second = (Failure(ExitCode.INTERNAL, reason, rank=1) for reason in ("first", "second"))
    assert first.write(path) and not second.write(path)
    assert Failure.read(path) == first
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_of_many_that_write_at_once_one_is_first(tmp_path: Path) -> None:
    path, wrote, start = tmp_path / "record", list[int](), threading.Barrier(16)

    def write(number: int) -> None:
        start.wait()
        if write_once(path, str(number) * 10_000):
            wrote.append(number)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wrote) == 1 and path.read_text() == str(wrote[0]) * 10_000


def test_a_record_of_an_older_version_is_read(tmp_path: Path) -> None:
    """As version 0.1.0 wrote it."""
    path = tmp_path / "rank_002.error.json"
    old = {"rank": 2, "host": "h", "time": 10.5, "type": "DivergedError", "message": "loss nan", "exit_code": 14}
    path.write_text(json.dumps({**old, "traceback": ""}))
    found = Failure.read(path)
    assert found == Failure(ExitCode.DIVERGED, "loss nan", 2, "h", None, 10.5, "DivergedError")
    path.write_text('{"rank": 0, "mess')
    assert Failure.read(path) is None and Failure.read(tmp_path / "none") is None


def test_unknown_exit_codes_are_internal() -> None:
    assert [exit_code(number) for number in (13, 99, None, "x")] == [ExitCode.OUT_OF_MEMORY, *[ExitCode.INTERNAL] * 3]


def test_a_rank_leaves_its_record_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "2")
    worker = Worker(tmp_path, 3)
    with pytest.raises(ConfigError) as found:
        worker.run()  # there is no config.yaml
    left = worker.leave_failure(found.value)
    worker.leave_failure(PlatformError("later"))
    path = tmp_path / "attempts" / "003" / "rank_002.error.json"
    assert Failure.read(path) == left
    assert (left.code, left.rank, left.step) == (ExitCode.BAD_CONFIG, 2, None)
