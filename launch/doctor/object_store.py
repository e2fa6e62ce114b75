"""Tests whether checkpoints can be saved at a URL, in a separate process: `python -m launch.doctor.object_store URL`.

That process has the ranks' environment variables, and can be killed if a store never answers.
"""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping

from brt_dist.errors import PlatformError
from brt_dist.unreachable import unreachable
from launch.run.python import module_command

_SECONDS = 40.0  # the libraries of stores retry for a while by themselves
_DENIED = ("AccessDenied", "Access Denied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "Forbidden", "403")


def problem_of(url: str, variables: Mapping[str, str], seconds: float = _SECONDS) -> str | None:
    """Why checkpoints cannot be saved at a URL and read again, and what to change; None if they can.

    Args:
        url: where to write, read and remove a small object.
        variables: of the environment, besides those of this process.
        seconds: how long to wait for the store.
    """
    command = module_command("launch.doctor.object_store", url)
    try:
        done = subprocess.run(
            command, env={**os.environ, **variables}, capture_output=True, text=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        return f"the store has not answered within {seconds:g} s{_place_of(url)}"
    if done.returncode == 0:
        return None
    return done.stdout.strip() or (done.stderr.strip().splitlines() or ["the store cannot be used"])[-1]


def _try_out(url: str) -> str | None:
    from brt_dist.checkpoint.object_storage import ObjectStorage

    try:
        ObjectStorage(url).try_out()
    except PlatformError as error:  # no such protocol, or its package is missing
        return str(error)
    except OSError as error:
        return _explained(url, error)
    return None


def _explained(url: str, error: OSError) -> str:
    """What an error of a store's library means for the user."""
    causes = list(_causes(error))
    names, text = {type(cause).__name__ for cause in causes}, " ".join(map(str, causes))
    said = str(causes[-1]).splitlines()[0] if str(causes[-1]) else type(causes[-1]).__name__
    bucket = url.partition("://")[2].partition("/")[0]
    if "NoCredentialsError" in names or "DefaultCredentialsError" in names:
        return (
            "there are no credentials; export them (for S3 AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE)"
        )
    if "FileNotFoundError" in names or "NoSuchBucket" in text:
        return f"there is no bucket {bucket}{_place_of(url)}; create it, or name one that exists"
    if any(word in text for word in _DENIED) or "PermissionError" in names:
        return f"these credentials may not write to {bucket} ({said}); export others, or ask for the right to write"
    problem = unreachable(url, error)
    if problem is not None or "ConnectionError" in names:
        return f"{problem or f'nothing answers ({said})'}; check the address{_place_of(url)}, and the network"
    return f"a small object could not be written and read again: {said}"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that led to it."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _place_of(url: str) -> str:
    endpoint = os.environ.get("AWS_ENDPOINT_URL") if url.startswith("s3") else None
    return f" (AWS_ENDPOINT_URL={endpoint})" if endpoint else ""


if __name__ == "__main__":
    found = _try_out(sys.argv[1])
    if found is not None:
        print(found)
        sys.exit(1)
