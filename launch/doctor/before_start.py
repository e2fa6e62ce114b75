"""Refuses, before anything starts, what would stop a run later: its folders, this machine's devices and limits."""

import os
from pathlib import Path

from brt_dist.config.schema import Config
from brt_dist.errors import PlatformError
from brt_dist.files import is_url
from launch.doctor.node import gpus
from launch.doctor.object_store import problem_of
from launch.run.open_files import check_open_files

# The devices of NVIDIA, of AMD, and of Windows' subsystem for Linux.
_DRIVERS = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/kfd", "/dev/dxg")


def check_before_start(config: Config) -> None:
    """Run the checks that do not need the data.

    Raises:
        PlatformError: the run would fail; says what to change.
    """
    check_open_files()
    check_device(config)
    check_place(config)


def check_device(config: Config) -> None:
    """Check that this machine has a GPU, if the run needs one and stays here.

    Raises:
        PlatformError: it has none.
    """
    launch = config.launch
    stays = launch.backend == "local" and launch.nodes == 1 and launch.ray_address in (None, "local")
    if config.run.device != "cuda" or not stays or any(map(os.path.exists, _DRIVERS)) or gpus():
        return
    raise PlatformError(
        "run.device=cuda: this machine shows no GPU; nearest: run.device=cpu, or auto to use what is there"
    )


def check_place(config: Config) -> None:
    """Check, before anything starts, that checkpoints can be written: a folder by its permissions, a URL by trying it.

    Raises:
        PlatformError: run.checkpoints is not a folder that this user may write, or an object store that refuses.
    """
    place = config.run.checkpoints
    if place is None:
        return
    if is_url(place):
        if (problem := problem_of(place, config.launch.environment)) is not None:
            raise PlatformError(f"run.checkpoints={place}: {problem}")
        return
    there = next(path for path in (Path(place), *Path(place).parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        why = "may not be written" if there.is_dir() else "is a file, not a folder"
        raise PlatformError(f"run.checkpoints={place}: {there} {why}; set it to a folder that you may write")
