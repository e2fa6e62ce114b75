"""Facts recorded about an attempt: host, code, versions."""

import socket
import subprocess
from pathlib import Path
from typing import Any

from brt_dist.versions import library_versions


def attempt_facts() -> dict[str, Any]:
    """Host, git_commit (None outside a checkout; ends in -dirty if files differ) and versions.  Imports no library."""
    return {"host": socket.gethostname(), "git_commit": git_commit(), "versions": library_versions()}


def git_commit() -> str | None:
    """The commit of the running code, if it is a git checkout."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def process_start(pid: int) -> str | None:
    """Start time of a process in clock ticks, which tells it from a later one with the same id; None if it ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]
