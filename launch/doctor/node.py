"""The report of a node, and the small services that nodes use to test each other.  Runs inside the agents."""

import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.run.facts import attempt_facts

_LISTEN_SECONDS = 60.0
_READ_SECONDS = 3.0  # network file systems cache for a while the fact that a file does not exist


@dataclass(frozen=True)
class NodeReport:
    """Facts about a node.

    Attributes:
        versions: of the packages that must match, and the commit of the code.
        devices: GPUs with free and total bytes.
        memory: free bytes.
        disk: free bytes for the run directory, None if the folder does not exist.
        problem: why the node could not write there.
    """

    host: str
    versions: dict[str, str]
    devices: tuple[dict[str, Any], ...]
    memory: int | None
    disk: int | None
    problem: str | None


def report(folder: str, mark: str) -> NodeReport:
    """Report on this node, and leave a file named `mark` in `folder` for the others to find."""
    problem, disk = None, None
    try:
        disk = shutil.disk_usage(folder).free
        (Path(folder) / mark).write_text(mark)
    except OSError as error:
        problem = error.strerror or str(error)
    facts = attempt_facts()
    versions = {**facts["versions"], "code": facts["git_commit"] or "no checkout"}
    return NodeReport(facts["host"], versions, tuple(gpus()), _free_memory(), disk, problem)


def unseen(folder: str, marks: Sequence[str]) -> list[str]:
    """Those of `marks` that this node cannot read in `folder`, or reads with different content."""
    deadline = time.monotonic() + _READ_SECONDS
    while True:
        left = [mark for mark in marks if _content(Path(folder) / mark) != mark]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.1)


def listen(address: str, connections: int) -> int:
    """Accept connections on a free port of `address` for a minute, `connections` of them at once.

    Raises:
        OSError: this node does not have the address.
    """
    server = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    server.bind((address, 0))
    server.listen(connections)
    server.settimeout(_LISTEN_SECONDS)

    def serve() -> None:
        deadline = time.monotonic() + _LISTEN_SECONDS
        with server, suppress(OSError):
            while time.monotonic() < deadline:
                server.accept()[0].close()

    threading.Thread(target=serve, daemon=True).start()
    return int(server.getsockname()[1])


def reach(address: str, port: int, seconds: float = 5.0) -> str | None:
    """Why this node cannot connect there; None if it can."""
    try:
        socket.create_connection((address, port), seconds).close()
    except OSError as error:
        return error.strerror or str(error) or type(error).__name__
    return None


def gpus() -> list[dict[str, Any]]:
    """Name, free and total bytes of each GPU, from nvidia-smi; empty if that is not installed or fails."""
    query = ["nvidia-smi", "--query-gpu=name,memory.free,memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    found = []
    for line in done.stdout.splitlines():
        name, *sizes = [part.strip() for part in line.split(",")]
        if len(sizes) == 2 and all(size.isdigit() for size in sizes):
            free, total = (int(size) << 20 for size in sizes)
            found.append({"name": name, "free": free, "total": total})
    return found


def _free_memory() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    except OSError:
        pass
    return None


def _content(path: Path) -> str | None:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    with open(descriptor) as file:
        return file.read()
