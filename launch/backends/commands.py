"""Programs of a cluster (sbatch, kubectl, ...): called with clear errors instead of exceptions of subprocess."""

import subprocess
from collections.abc import Sequence

from brt_dist.errors import PlatformError

_SECONDS = 60.0


def call(command: Sequence[str], *, text: str | None = None, what: str) -> str:
    """Standard output of `command`, which gets `text` as its input.

    what: for the message, such as "submit to Slurm".  PlatformError: it is not there, fails, or takes a minute.
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
        raise PlatformError(f"cannot {what}: there is no {command[0]} on this machine") from None
    except subprocess.TimeoutExpired:
        raise PlatformError(f"cannot {what}: {command[0]} gave no answer for {_SECONDS:g} s") from None
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise PlatformError(f"cannot {what}: {' '.join(said[-3:]) or f'{command[0]} ended with {done.returncode}'}")
    return done.stdout
