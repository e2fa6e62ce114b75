import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from brt_dist.errors import PlatformError
from launch.nodes import listening


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


needs_compiler = pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler")
_BOUND = """
import socket, sys
family, host = getattr(socket, sys.argv[1]), sys.argv[2]
kind = getattr(socket, sys.argv[3])
with socket.socket(family, kind) as one:
    if family == socket.AF_INET6 and sys.argv[4:]:
        one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    one.bind((host, 0))
    print(one.getsockname()[0])
"""


@needs_compiler
@pytest.mark.parametrize(
    ("words", "address"),
    [
        (("AF_INET", "", "SOCK_STREAM"), "127.0.0.9"),
        (("AF_INET6", "::", "SOCK_STREAM"), "::ffff:127.0.0.9"),
        (("AF_INET6", "::", "SOCK_STREAM", "alone"), "::ffff:127.0.0.9"),
        (("AF_INET6", "::ffff:0.0.0.0", "SOCK_STREAM"), "::ffff:127.0.0.9"),
        (("AF_INET", "127.0.0.3", "SOCK_STREAM"), "127.0.0.3"),
        (("AF_INET6", "::1", "SOCK_STREAM"), "::1"),
        (("AF_INET", "", "SOCK_DGRAM"), "0.0.0.0"),
    ],
)
def test_only_tcp_on_all_interfaces_is_moved(words: tuple[str, ...], address: str) -> None:
    environment = listening.listening_on("127.0.0.9", os.environ)
    command = [sys.executable, "-c", _BOUND, *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == address, done.stderr


@needs_compiler
def test_what_the_user_preloads_stays() -> None:
    before = {**os.environ, "LD_PRELOAD": "libm.so.6"}
    changed = listening.listening_on("127.0.0.9", before)
    assert changed["LD_PRELOAD"].endswith(".so:libm.so.6") and listening.is_set(changed)
    assert listening.anywhere(changed) == before
    assert "LD_PRELOAD" not in listening.anywhere(listening.listening_on("127.0.0.9", {}))


def test_no_compiler_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PlatformError, match="has no C compiler"):
        listening.listening_on("127.0.0.9", os.environ)


@needs_compiler
def test_a_library_that_does_not_take_effect_is_told() -> None:
    with pytest.raises(PlatformError, match=r"cannot make programs listen on 198\.51\.100\.7"):
        listening.listening_on("198.51.100.7", os.environ)  # no address of this machine


@needs_compiler
def test_it_is_compiled_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listening.listening_on("127.0.0.9", os.environ)
    (library,) = (cache / "brt_dist").iterdir()
    monkeypatch.setenv("PATH", "")
    assert listening.listening_on("127.0.0.9", os.environ)["LD_PRELOAD"].startswith(str(library))


def test_a_cache_that_cannot_be_preloaded_from_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in (str(tmp_path / "with space"), "~"):
        monkeypatch.setenv("XDG_CACHE_HOME", place)
        with pytest.raises(PlatformError, match="set XDG_CACHE_HOME to a folder that can"):
            listening.listening_on("127.0.0.9", os.environ)
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(PlatformError, match="cannot be written"):
        listening.listening_on("127.0.0.9", os.environ)


def test_the_address_on_the_way() -> None:
    assert listening.address_towards("127.0.0.1:6379") is None
    assert listening.address_towards("auto") is None
