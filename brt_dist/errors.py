"""The exceptions of brt_dist and the exit codes of its processes.

Every error that a user can cause is a :class:`BrtError`.  The command line and the worker print its message without a
traceback and exit with its code.  Anything else is a bug and keeps its traceback.
"""

import errno
import os
import re
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


_MEANING = {
    errno.EACCES: "permission denied",
    errno.EPERM: "not permitted",
    errno.EROFS: "the file system is read-only",
    errno.ENOENT: "no such file or folder",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
    errno.EISDIR: "a folder, not a file",
    errno.EEXIST: "a file of this name is in the way",
    errno.ELOOP: "a link that leads to itself",
    errno.ENAMETOOLONG: "the name is too long for the file system",
    errno.ENOSPC: "no space is left on the device",
    errno.EDQUOT: "the quota of the disk is used up",
    errno.EMFILE: "too many open files; raise the limit (`ulimit -n 4096`)",
    errno.ENFILE: "too many open files on this machine",
    errno.EIO: "the device reports an input/output error",
    errno.ESTALE: "the network file system has lost the file (stale handle)",
}
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.tmp-\d+-[0-9a-f]{8}")  # names made by `files.temporary_name`


def system_error(error: OSError) -> str | None:
    """An operating system error as `PLACE: what is wrong`; None if it names no place and is not a full disk.

    An error about a temporary file names the file that it would have become.
    """
    meaning = _MEANING.get(error.errno or 0) or error.strerror or str(error)
    if not isinstance(error.filename, str | bytes | os.PathLike):
        return meaning if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE) else None
    folder, name = os.path.split(os.fsdecode(error.filename))
    if (temporary := _TEMPORARY.fullmatch(name)) is not None:
        name = temporary["name"]
    return f"{os.path.join(folder, name)}: {meaning}"
