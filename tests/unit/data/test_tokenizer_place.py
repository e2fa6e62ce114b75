"""Tokenizers by file, by folder and by name; the cache of the hub has the layout that huggingface_hub reads."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import ClassVar

import pytest
from huggingface_hub import constants

from brt_dist.data.tokenizers import digest, load_tokenizer, train_bpe
from brt_dist.errors import DataError, PlatformError


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder as models have it."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_bytes(train_bpe(iter(["some text to learn from, some text"]), 270))
    return folder


def test_a_folder_of_a_model_is_a_tokenizer(model: Path) -> None:
    assert digest(load_tokenizer(model)) == digest(load_tokenizer(model / "tokenizer.json"))
    (model / "tokenizer.json").unlink()
    with pytest.raises(DataError, match=r"no tokenizer in this folder \(tokenizer.json, "):
        load_tokenizer(model)


def test_a_name_on_the_hub_is_found_without_a_network(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = tmp_path / "hub" / "models--owner--name"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("abc")
    (cached / "snapshots").mkdir()
    model.rename(cached / "snapshots" / "abc")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    found = load_tokenizer(Path("owner/name"))
    assert found.file == (cached / "snapshots" / "abc" / "tokenizer.json").read_bytes()
    with pytest.raises(PlatformError, match=r"owner/other: no such file, and .*cannot be reached .*HF_HUB_OFFLINE"):
        load_tokenizer(Path("owner/other"))
    with pytest.raises(DataError, match=r"https://a.b/c.json: tokenizers cannot be read from this kind of URL"):
        load_tokenizer(Path("https://a.b/c.json"))
    with pytest.raises(DataError, match="No such file"):
        load_tokenizer(Path("a/path/that/is/none.json"))


class Hub(BaseHTTPRequestHandler):
    """What huggingface_hub asks of a hub, with one model."""

    files: ClassVar[dict[str, bytes]] = {}

    def do_HEAD(self) -> None:
        path = self.path.removeprefix("/owner/name/resolve/main/")
        self.send_response(200 if path in self.files else 404)
        if path in self.files:
            self.send_header("X-Repo-Commit", "a" * 40)
            self.send_header("ETag", '"1"')
            self.send_header("Content-Length", str(len(self.files[path])))
        else:
            self.send_header("X-Error-Code", "EntryNotFound" if path != self.path else "RepoNotFound")
            self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        self.wfile.write(self.files.get(self.path.removeprefix("/owner/name/resolve/main/"), b""))

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def hub(**files: bytes) -> Iterator[str]:
    handler = type("OneModel", (Hub,), {"files": {name.replace("_", "."): data for name, data in files.items()}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def test_a_build_fetches_a_tokenizer_by_name_once(model: Path, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("some text")

    def build(name: str, out: str, endpoint: str) -> subprocess.CompletedProcess[str]:
        command = ["data", "build", "x.txt", "--tokenizer", name, "--out", out, "--lossy", "allow"]
        known = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": endpoint, "NO_PROXY": "127.0.0.1"}
        known |= {"HF_HUB_DISABLE_XET": "1"}
        begin = [sys.executable, "-P", "-m", "launch.cli", *command]
        return subprocess.run(begin, check=False, cwd=tmp_path, env=known, capture_output=True, text=True, timeout=120)

    with hub(tokenizer_json=(model / "tokenizer.json").read_bytes()) as endpoint:
        built = build("owner/name", "a", endpoint)
        assert built.returncode == 0, built.stderr
        missing = build("owner/other", "b", endpoint)
    assert missing.returncode and "owner/other: no such file, and no tokenizer of that name" in missing.stderr
    built = build("owner/name", "c", "http://127.0.0.1:9")  # nothing answers there
    assert built.returncode == 0, built.stderr
    assert (
        digest(load_tokenizer(tmp_path / "a"))
        == digest(load_tokenizer(tmp_path / "c"))
        == digest(load_tokenizer(model))
    )
    (tmp_path / "hf").rename(tmp_path / "old")
    nobody = build("hf://owner/name", "e", "http://127.0.0.1:9")
    assert nobody.returncode == 18 and "Retrying" not in nobody.stderr
    assert "owner/name: no such file, and 127.0.0.1:9 cannot be reached (Connection refused)" in nobody.stderr
    with hub(config_json=b"{}") as endpoint:
        none = build("owner/name", "d", endpoint)
    assert none.returncode and "owner/name: this model on the hub has no tokenizer (tokenizer.json, " in none.stderr
