"""Ray, for as long as a build or a run needs it: a private one on the loopback interface, or a cluster to join."""

import logging
import os
import secrets
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from brt_dist.errors import PlatformError

_OBJECT_STORE_BYTES = 100 << 20  # results are small records; the default would take 30% of the machine's memory
_LONGEST_FOLDER = 40  # allowed letters of the folder in which Ray makes its own
_ANSWER_SECONDS = 20.0  # for a head that is about to start
_TOKEN_NAMES = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


@contextmanager
def ray_cluster(address: str | None, **resources: Any) -> Iterator[None]:
    """Be connected to Ray: to a new one on this machine (address None or `local`), which ends with this process, or to
    `address`.

    resources: further arguments of `ray.init` for a new one (num_cpus, ...).  Call it before anything imports ray.
    PlatformError: Ray cannot be started or reached.
    """
    address = None if address == "local" else address
    with set_for_a_while(local_environment() if address is None else joining_environment()):
        yield from _connected(address, resources)


def _connected(address: str | None, resources: dict[str, Any]) -> Iterator[None]:
    import ray

    if address is not None:
        _await(address)
    common: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    try:
        # Ray puts the working folder on its workers' module path, where a user's `random.py` would get in the way
        with chdir("/"):
            if address is None:
                common |= {"object_store_memory": _OBJECT_STORE_BYTES, **resources}
                _start_ray(include_dashboard=False, **common)
            else:
                ray.init(address=address, **common)
    except Exception as error:  # Ray raises whatever its many parts raise
        what = f"cannot join the Ray cluster at {address}" if address else "cannot start Ray on this machine"
        hint = "; if it asks for a token, set RAY_AUTH_TOKEN_PATH to its file" if address else ""
        raise PlatformError(f"{what}: {str(error).strip() or type(error).__name__}{hint}") from None
    try:
        yield
    finally:
        ray.shutdown()


def _await(address: str) -> None:
    """Wait until something listens at the address of a cluster, rather than for the minutes that Ray would.

    Raises:
        PlatformError: nothing does.
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        return  # `auto`, which Ray looks up itself
    deadline = time.monotonic() + _ANSWER_SECONDS
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5.0).close()
            return
        except (OSError, UnicodeError, OverflowError) as error:
            if isinstance(error, ConnectionRefusedError | TimeoutError) and time.monotonic() < deadline:
                time.sleep(0.5)
                continue
            raise PlatformError(
                f"no Ray cluster answers at {address} ({getattr(error, 'strerror', None) or error}); check "
                "launch.ray_address, or start its head with `ray start --head`"
            ) from None


def _start_ray(attempts: int = 3, **settings: Any) -> None:
    """`ray.init`, retried if the machine was too busy for the 30 seconds that Ray allows a node to start."""
    import ray

    for left in reversed(range(attempts)):
        try:
            ray.init(address="local", **settings)
            return
        except Exception as error:
            if not left or "timed out during startup" not in str(error):
                raise
            ray.shutdown()


@contextmanager
def set_for_a_while(values: dict[str, str]) -> Iterator[None]:
    """Set variables temporarily: the next Ray that this process starts or joins may need others."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def local_environment() -> dict[str, str]:
    """Variables for a Ray that only this user and this machine can reach.

    Without them Ray listens on all interfaces, and `ray.init()` writes a token into the home folder that turns
    authentication on for the next `ray start` there.
    """
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": os.environ.get("RAY_AUTH_TOKEN", _own_token()),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # the one switch that makes Ray take 127.0.0.1 as its address
        "RAY_ADDRESS": "",  # somebody else's cluster
        **_short_folder(),
        **quiet(),
    }


def _short_folder() -> dict[str, str]:
    """A folder for Ray's sockets, if the user's own is too long for them or has other letters.

    A socket's path has at most 107 bytes, of which Ray takes 66 below its folder.
    """
    folder = os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or ""
    fits = folder.isascii() and len(folder) <= _LONGEST_FOLDER
    return {} if fits or not os.access("/tmp", os.W_OK) else {"RAY_TMPDIR": "/tmp"}


@cache
def _own_token() -> str:
    """One token for all Rays that this process starts: Ray reads its token once in the life of a process."""
    return secrets.token_hex(32)


def joining_environment() -> dict[str, str]:
    """Variables for joining a cluster: what the user exported, else token authentication where there is a token."""
    mode = os.environ.get("RAY_AUTH_MODE")
    if mode is None:
        has_token = (
            any(os.environ.get(name) for name in _TOKEN_NAMES) or (Path.home() / ".ray" / "auth_token").is_file()
        )
        mode = "token" if has_token else "disabled"
    return {"RAY_AUTH_MODE": mode, **quiet()}


def quiet() -> dict[str, str]:
    """Variables for every Ray that we start: no usage reports, and ranks run at normal priority."""
    return {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "RAY_ENABLE_METRICS_COLLECTION": "0",
        "RAY_DEDUP_LOGS": "0",
        "RAY_worker_niceness": "0",  # ranks are children of a worker, and are what this machine is for
    }


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def running_ray(workers: int | None, address: str | None = None) -> Iterator[int]:
    """A Ray that can run `workers` tasks at once; yields how many tasks to hand out at a time.

    Starts one on this machine (workers: by default all cores) and shuts it down at the end, or joins the cluster at
    `address` (workers: by default all that it has) and leaves it running.  If this process already has one, that is
    used unchanged.  PlatformError: Ray does not start or cannot be reached.
    """
    if is_connected():
        yield workers or _hand_out(_cluster_cores())
    elif address is None:
        with ray_cluster(None, num_cpus=workers or available_cores()):
            yield _hand_out(workers or available_cores())
    else:
        with ray_cluster(address):
            yield workers or _hand_out(_cluster_cores())


def is_connected() -> bool:
    """Whether this process is connected to a Ray; asks without importing it."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def _cluster_cores() -> int:
    import ray

    return int(ray.cluster_resources().get("CPU", 1))


def _hand_out(running: int) -> int:
    """Tasks to hand out if `running` can run at once: as many again wait, so that no worker is idle in between."""
    return 2 * max(1, running)
