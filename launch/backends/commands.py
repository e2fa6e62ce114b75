"""Calls programs of a cluster (sbatch, kubectl, ...) with clear errors instead of subprocess exceptions."""

import subprocess
from collections.abc import Sequence

from brt_dist.errors import PlatformError

_SECONDS = 60.0


def call(command: Sequence[str], *, text: str | None = None, what: str) -> str:
    """Run a command and return its standard output.

    Args:
        command: the program and its arguments.
        text: its standard input.
        what: what the command does, for error messages, such as "submit to Slurm".

    Raises:
        PlatformError: it is not installed, fails, or takes longer than a minute.
    """
    try:
        done = subprocess.run(
            list(command),
            input=text,
            stdin=subprocess.DEVNULL if text is None else None,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
    except FileNotFoundError:
        raise PlatformError(f"cannot {what}: {command[0]} is not installed on this machine") from None
    except subprocess.TimeoutExpired:
        raise PlatformError(f"cannot {what}: {command[0]} did not answer within {_SECONDS:g} s") from None
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        reason = " ".join(said[-3:]) or f"{command[0]} exited with code {done.returncode}"
        raise PlatformError(f"cannot {what}: {reason}")
    return done.stdout
