"""The versions of the libraries that decide what a run computes."""

import platform
from importlib.metadata import PackageNotFoundError, version

from brt_dist import __version__

_LIBRARIES = ("torch", "deepspeed", "megatron-core", "numpy", "ray")


def library_versions() -> dict[str, str]:
    """Versions by name, of Python, this package and those libraries that are installed.  Imports none of them.

    For this package it is the version of the running code, which need not be installed: Ray ships it with a job.
    """
    found = {"python": platform.python_version(), "brt_dist": __version__}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
