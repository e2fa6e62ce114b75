"""How many files this process may open: as many as it is allowed to, and enough for a run."""

import resource

from brt_dist.errors import PlatformError

NEEDED = 1024  # Ray on one machine, and the shards that a rank has mapped
_ENOUGH = 1 << 16


def open_more_files() -> None:
    """Raise the soft limit to the hard one; processes that this one starts inherit it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _ENOUGH if hard == resource.RLIM_INFINITY else min(hard, _ENOUGH)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def check_open_files() -> None:
    """Refuse to start a run that would later fail because too few open files are allowed.

    Raises:
        PlatformError: fewer are allowed than a run needs.
    """
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if allowed != resource.RLIM_INFINITY and allowed < NEEDED:
        raise PlatformError(
            f"{allowed} open files are allowed, but a run needs {NEEDED}; raise the limit: `ulimit -n {NEEDED}`"
        )
