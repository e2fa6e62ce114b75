"""The exceptions of brt_dist and the exit codes of its processes.

Every error that a user can cause is a :class:`BrtError`.  The command line and the worker print its message
without a traceback and end with its exit code; anything else is a defect of ours and keeps its traceback.
"""

from enum import IntEnum


class ExitCode(IntEnum):
    """Why a process of a run ended.  The supervisor decides from this alone what to do next."""

    FINISHED = 0
    INTERNAL = 1  # a defect: an exception that nobody foresaw
    USAGE = 2  # the command line itself (click's own code)
    BAD_CONFIG = 10
    BAD_DATA = 11
    BAD_CHECKPOINT = 12
    OUT_OF_MEMORY = 13
    DIVERGED = 14
    HUNG = 15
    LOST_NODE = 16
    PREEMPTED = 17  # saved; start me again
    ENVIRONMENT = 18  # versions, ports, devices, storage
    INTERRUPTED = 130  # Ctrl-C


class BrtError(Exception):
    """Base of all foreseen errors.  The message says what is wrong, where, and the nearest thing that works."""

    exit_code = ExitCode.INTERNAL


class ConfigError(BrtError):
    """A value, or a combination of values, in the config."""

    exit_code = ExitCode.BAD_CONFIG


class DataError(BrtError):
    """A corpus, tokenizer, shard or dataset that cannot be used."""

    exit_code = ExitCode.BAD_DATA


class CheckpointError(BrtError):
    """A checkpoint that is damaged, incomplete, or does not belong to this run."""

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
    """The machine, its libraries or its network are not as needed."""

    exit_code = ExitCode.ENVIRONMENT


class LaunchError(BrtError):
    """Processes of a run could not be started or were lost."""

    exit_code = ExitCode.LOST_NODE
