"""The exceptions of brt_dist and the exit codes of its processes.

Every error that a user can cause is a :class:`BrtError`.  The command line and the worker print its message without a
traceback and exit with its code.  Anything else is a bug and keeps its traceback.
"""

from enum import IntEnum


class ExitCode(IntEnum):
    """Why a process of a run ended."""

    FINISHED = 0
    INTERNAL = 1  # a bug: an unexpected exception
    USAGE = 2  # wrong use of the command line (click's own code)
    BAD_CONFIG = 10
    BAD_DATA = 11
    BAD_CHECKPOINT = 12
    OUT_OF_MEMORY = 13
    DIVERGED = 14
    HUNG = 15
    LOST_NODE = 16
    PREEMPTED = 17  # stopped on request after saving; resume it
    ENVIRONMENT = 18  # versions, ports, devices, storage
    INTERRUPTED = 130  # Ctrl-C


class BrtError(Exception):
    """Base class of expected errors.  The message says what is wrong, where, and the nearest thing that works."""

    exit_code = ExitCode.INTERNAL


class ConfigError(BrtError):
    """The config has an invalid value or combination of values."""

    exit_code = ExitCode.BAD_CONFIG


class DataError(BrtError):
    """A corpus, tokenizer, shard or dataset cannot be used."""

    exit_code = ExitCode.BAD_DATA


class CheckpointError(BrtError):
    """A checkpoint is damaged, incomplete, or does not belong to this run."""

    exit_code = ExitCode.BAD_CHECKPOINT


class DivergedError(BrtError):
    """Loss or gradients are no longer finite, or far from what they were.

    Args:
        step: at which that was found.
    """

    exit_code = ExitCode.DIVERGED

    def __init__(self, message: str, step: int | None = None) -> None:
        super().__init__(message)
        self.step = step


class PlatformError(BrtError):
    """Something about the machine, its libraries, storage or network prevents the run."""

    exit_code = ExitCode.ENVIRONMENT


class LaunchError(BrtError):
    """Processes of a run could not be started, or were lost."""

    exit_code = ExitCode.LOST_NODE
