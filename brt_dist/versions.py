"""The versions of the libraries that decide what a run computes."""

import platform
from importlib.metadata import PackageNotFoundError, version

from brt_dist import __version__

_LIBRARIES = ("torch", "deepspeed", "megatron-core", "numpy", "ray")


def library_versions() -> dict[str, str]:
    """Name to version, of Python, of this package and of what is installed of the libraries.  Imports none of them.

    Of this package it is that of the code that runs, which need not be installed: a Ray job has it shipped.
    """
    found = {"python": platform.python_version(), "brt_dist": __version__}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
