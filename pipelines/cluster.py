"""Ray, for as long as a build needs it."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from brt_dist.errors import PlatformError

_OBJECT_STORE_BYTES = 100 << 20  # results are small records; the default would take 30% of the machine's memory


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def running_ray(workers: int | None, address: str | None = None) -> Iterator[int]:
    """A Ray that can run `workers` tasks at once; yields how many tasks to hand out at a time.

    Starts one on this machine (workers: by default all cores) and shuts it down at the end, or joins the cluster at
    `address` (workers: by default all that it has) and leaves it running.  If this process already has one, that is
    used as it is.  PlatformError: Ray does not start or cannot be reached.
    """
    environment = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    if address is None:
        # Ray would switch this on by itself, for this process and all that it starts later, and warn about it.
        environment["RAY_AUTH_MODE"] = "token"
    with _environment(environment):
        import ray

        if ray.is_initialized():
            yield workers or _hand_out(int(ray.cluster_resources().get("CPU", 1)))
            return
        try:
            if address is None:
                ray.init(
                    address="local",
                    num_cpus=workers or available_cores(),
                    object_store_memory=_OBJECT_STORE_BYTES,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                )
            else:
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except Exception as error:  # Ray raises many kinds
            what = f"join the Ray cluster at {address}" if address else "start Ray on this machine"
            raise PlatformError(f"could not {what}: {error}") from error
        try:
            if address is None:
                yield _hand_out(workers or available_cores())
            else:
                yield workers or _hand_out(int(ray.cluster_resources().get("CPU", 1)))
        finally:
            ray.shutdown()


def _hand_out(running: int) -> int:
    """Tasks to hand out where `running` can run: as many again wait, so that nothing is idle in between."""
    return 2 * max(1, running)


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Set variables that are not set, for a while."""
    added = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
