"""Makes third-party programs listen on one address if they have no option for it.

Ray's servers (gcs_server, raylet, the workers, the dashboard agent) listen on all interfaces as soon as a cluster has
an address other than 127.0.0.1.  So they are started with a small C library that wraps libc's bind(2) (listening.c).
It is compiled on first use, which needs a C compiler and a tenth of a second, and kept in the user's cache folder,
because a cluster may run for weeks and some machines clean /tmp meanwhile.
"""

import os
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

from brt_dist.errors import PlatformError
from brt_dist.files import temporary_name

_SOURCE = Path(__file__).with_name("listening.c")
_LIBRARY = "libbrt_listening-"
_ADDRESS, _PRELOAD = "BRT_LISTEN_ADDRESS", "LD_PRELOAD"
_PROBE = """import socket
with socket.socket() as one:
    one.bind(("", 0))
    print(one.getsockname()[0])"""


def listening_on(address: str, environment: Mapping[str, str]) -> dict[str, str]:
    """`environment` for programs (and their children) that must listen on `address` instead of on all interfaces.

    Args:
        address: IPv4 address of this machine.
        environment: to extend.

    Raises:
        PlatformError: there is no C compiler, or this does not work on this machine.
    """
    library = _library()
    others = [name for name in environment.get(_PRELOAD, "").split(":") if name]
    changed = {**environment, _PRELOAD: ":".join([str(library), *others]), _ADDRESS: address}
    command = [sys.executable, "-I", "-S", "-c", _PROBE]
    done = subprocess.run(command, env=changed, capture_output=True, text=True, check=False)
    if done.stdout.strip() != address:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        raise PlatformError(f"{socket.gethostname()}: cannot make programs listen on {address}: {''.join(said)}")
    return changed


def anywhere(environment: Mapping[str, str]) -> dict[str, str]:
    """`environment` without what `listening_on` added."""
    kept = {name: value for name, value in environment.items() if name != _ADDRESS}
    others = [name for name in kept.pop(_PRELOAD, "").split(":") if name and not Path(name).name.startswith(_LIBRARY)]
    return {**kept, _PRELOAD: ":".join(others)} if others else kept


def is_set(environment: Mapping[str, str]) -> bool:
    """Whether programs with this environment already listen on one address."""
    return _ADDRESS in environment


def address_towards(place: str) -> str | None:
    """This machine's IPv4 address towards HOST:PORT; None if there is none, or HOST is this machine."""
    host, _, port = place.rpartition(":")
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, int(port)))  # nothing is sent
            address = str(probe.getsockname()[0])
    except (OSError, ValueError):
        return None
    return None if address.startswith("127.") else address


def _library() -> Path:
    """The compiled library for this source, processor and C library.

    Raises:
        PlatformError: it cannot be compiled or stored.
    """
    kind = f"{platform.machine()}-{''.join(platform.libc_ver())}-{sha256(_SOURCE.read_bytes()).hexdigest()[:12]}"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "brt_dist"
    library = cache / f"{_LIBRARY}{kind}.so"
    if not library.is_absolute() or set(str(library)) & set(" \t\n:"):  # "~": a user without a home
        raise PlatformError(f"{library} cannot be named in {_PRELOAD}; set XDG_CACHE_HOME to a folder that can")
    if not library.is_file():
        try:
            cache.mkdir(parents=True, exist_ok=True)
            _compile(library)
        except OSError as error:
            raise PlatformError(f"{socket.gethostname()}: {cache} cannot be written: {error.strerror}") from None
    return library


def _compile(library: Path) -> None:
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CC") or "cc", "gcc", "clang"))), None)
    if compiler is None:
        raise PlatformError(f"{socket.gethostname()} has no C compiler (cc, gcc, clang)")
    draft = temporary_name(library)
    command = [compiler, "-shared", "-fPIC", "-O2", "-o", str(draft), str(_SOURCE), "-ldl"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            said = (done.stderr.strip().splitlines() or [f"it exited with code {done.returncode}"])[0]
            raise PlatformError(f"{socket.gethostname()}: {compiler} cannot compile {_SOURCE}: {said}")
        os.replace(draft, library)
    finally:
        draft.unlink(missing_ok=True)
