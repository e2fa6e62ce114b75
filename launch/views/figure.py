"""Saving a figure of matplotlib."""

from pathlib import Path
from typing import Any

from brt_dist.errors import PlatformError
from brt_dist.files import atomic_file


def save_figure(figure: Any, path: Path) -> None:
    """Write the figure to `path` as PNG, atomically, and close it.

    Raises:
        PlatformError: the file cannot be written.
    """
    from matplotlib import pyplot

    try:
        with atomic_file(path) as file:
            figure.savefig(file, format="png")
    except OSError as error:
        raise PlatformError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        pyplot.close(figure)
