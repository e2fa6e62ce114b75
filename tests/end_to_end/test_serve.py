"""`brt serve` as a separate process: under load, and killed while it answers."""

import json
import signal
import socket
from http.client import HTTPConnection, IncompleteRead
from pathlib import Path
from typing import Any

import pytest

from benchmarks.serving import load, server, small_model

pytestmark = pytest.mark.slow


def post(port: int, body: dict[str, Any]) -> tuple[HTTPConnection, Any]:
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    return connection, connection.getresponse()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_client_learns_that_the_server_is_gone(how: signal.Signals, tmp_path: Path) -> None:
    """And a restarted server does not know the previous one's sessions."""
    source = small_model(tmp_path / "model", width=16, window=8)
    with server(source, "--max-tokens", "1000000") as (port, process):
        found, _ = load(port, clients=12, requests=24, prompt_bytes=50, tokens=4)
        assert len(found) == 24 and all(0 < one.first <= one.whole for one in found)
        begun = {"prompt": "x", "max_tokens": 2, "session": "s", "session_new": True}
        assert post(port, begun)[1].status == 200
        _, answer = post(port, {"prompt": "x", "max_tokens": 1_000_000, "stream": True, "session": "s"})
        assert answer.status == 200 and answer.readline().startswith(b"data: ")
        process.send_signal(how)  # with SIGTERM requests have some seconds to end
        with pytest.raises((IncompleteRead, ConnectionResetError)) as broken:
            answer.read()
        assert b"[DONE]" not in getattr(broken.value, "partial", b"")
        process.wait(60)
        with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port), timeout=5):
            pass
    with server(source) as (port, _):
        _, answer = post(port, {"prompt": "x", "session": "s"})
        assert answer.status == 404 and "session_new=true" in json.loads(answer.read())["error"]["message"]
