"""A host that cannot be reached is named, whatever the library; any answer at all means that it can be reached."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from brt_dist.checkpoint.places import find_place
from brt_dist.data.dataset import Dataset
from brt_dist.data.file_cache import CacheSettings
from brt_dist.errors import BrtError, DataError, PlatformError
from brt_dist.unreachable import unreachable
from launch.cli import main
from pipelines.build import BuildSettings, build


class Answers(BaseHTTPRequestHandler):
    """Answers with the status that the path begins with."""

    def do_GET(self) -> None:
        self.send_response(int(self.path.split("/")[1]))
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)


def refusing(monkeypatch: pytest.MonkeyPatch, protocol: str, port: int) -> tuple[str, str]:
    """A URL and the host that it stands for, on which nothing listens."""
    host = f"127.0.0.1:{port}"
    if protocol == "s3":
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}")
        return "s3://bucket/x", host
    return f"{protocol}://{host}/x", host


@pytest.mark.parametrize("protocol", ["http", "https", "s3"])
@pytest.mark.parametrize("asked", ["source", "checkpoints", "dataset"])
def test_the_host_is_named(
    protocol: str, asked: str, dead_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, host = refusing(monkeypatch, protocol, dead_port)
    with pytest.raises(PlatformError) as error:
        if asked == "source":
            build(BuildSettings((url,), tokenizer="bytes"), tmp_path / "out", workers=0)
        elif asked == "checkpoints":
            find_place(url).names()
        else:
            Dataset.open(url, CacheSettings(tmp_path / "cache", 1000, retry_seconds=0.0))
    message = str(error.value)
    assert message.startswith(url) and f"{host} cannot be reached" in message and "nearest: a copy of" in message
    assert not (tmp_path / "out").exists()


def test_a_name_that_nobody_has(tmp_path: Path) -> None:
    """The domain .invalid never resolves, with a network or without."""
    with pytest.raises(PlatformError, match=r"https://a.invalid/x: a.invalid cannot be reached \(.+\); nearest"):
        build(BuildSettings(("https://a.invalid/x",), tokenizer="bytes"), tmp_path / "out", workers=0)


@pytest.mark.parametrize(
    ("status", "kind", "told"), [(404, DataError, "no such file or folder"), (403, PlatformError, "403")]
)
def test_an_answer_is_told_as_what_it_is(
    server: str, status: int, kind: type[BrtError], told: str, tmp_path: Path
) -> None:
    with pytest.raises(kind, match=told) as error:
        build(BuildSettings((f"{server}/{status}/x",), tokenizer="bytes"), tmp_path / "out", workers=0)
    assert "cannot be reached" not in str(error.value)


def test_other_errors_are_others() -> None:
    for error in (FileNotFoundError("s3://b/x"), PermissionError("403"), ValueError("ConnectError")):
        assert unreachable("s3://b/x", error) is None


def test_the_host_without_a_password() -> None:
    error = ConnectionRefusedError(111, "Connection refused")
    found = unreachable("https://user:secret@host:1/x", error)
    assert found == "host:1 cannot be reached (Connection refused)"


@pytest.mark.parametrize(
    "command",
    [
        ["data", "verify", "s3://b/d"],
        ["data", "inspect", "https://a.invalid/d"],
        ["data", "stats", "s3://b/d"],
        ["data", "index", "s3://b/a.bin", "--out", "o", "--tokenizer", "t.json"],
        ["data", "build", "text", "--out", "s3://b/d"],
        ["report", "s3://b/run"],
        ["status", "s3://b/run"],
        ["list", "s3://b"],
        ["config", "show", "https://a.invalid/c.yaml"],
    ],
)
def test_a_url_where_only_a_path_works(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is refused; as a path it would be a folder called `s3:`."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        main(command)
    assert end.value.code in (2, 10) and "is a URL; " in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
