"""The interface of weight formats.  A format is one file in this folder and one line in `brt_dist/kinds.py`.

The help of `brt export` reads these files, so they import heavy modules only where they use them.
"""

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from brt_dist.config.schema import ModelConfig
    from brt_dist.export.weights import Weights

SHARD_BYTES = 5 * 10**9  # the largest size of a file of weights, unless a user says another


class WeightFormat(ABC):
    """Writes and reads weights in one format.

    Attributes:
        about: what it writes, for the help.
    """

    about: ClassVar[str]

    @classmethod
    @abstractmethod
    def recognizes(cls, path: Path) -> bool:
        """Whether the file or folder `path` looks like this format; the first format that says yes opens it."""

    @classmethod
    @abstractmethod
    def open(cls, path: Path, model: "ModelConfig | None", *, verify: bool) -> AbstractContextManager["Weights"]:
        """The weights at `path`.

        Args:
            path: what `recognizes` said yes to.
            model: the network, for a format that may not describe it.
            verify: compare the files with their digests, if the format has any.

        Raises:
            CheckpointError: damaged, or not of this format after all.
        """

    @classmethod
    @abstractmethod
    def write(cls, weights: "Weights", out: Path, shard_bytes: int = SHARD_BYTES) -> list[str]:
        """Write `weights` to `out`, atomically.

        Args:
            weights: what to write.
            out: where; must not exist, or be an empty folder.
            shard_bytes: the largest size of a file of weights, for a format that can split them.

        Returns:
            The names of the files.

        Raises:
            PlatformError: `out` holds something already, or cannot be written.
        """
