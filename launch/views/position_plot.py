"""Plot of bits per token by position in the document: what memory is worth as a document goes on."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from brt_dist.events import PositionLoss
from launch.views.figure import save_figure

_COLOURS = ("#1f5fa8", "#c2571a", "#2c7a4b", "#7a3fa0", "#8a6d00")

_STYLES: tuple[Any, ...] = ("-", ":", "--", "-.", (0, (1, 4)), (0, (6, 3, 1, 3, 1, 3)))


def plot_positions(path: Path, found: Mapping[str, Mapping[str, Sequence[PositionLoss]]]) -> None:
    """Draw a PNG.

    Args:
        path: of the file.
        found: by name of the data, then by use of memory (`carried` first, `cleared`, ...): mean loss by position.

    Raises:
        PlatformError: it cannot be written.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5), dpi=120, layout="constrained")
    for number, (name, by_memory) in enumerate(found.items()):
        for order, (memory, positions) in enumerate(by_memory.items()):
            edges = [position.begin for position in positions]
            ends = [position.end or 2 * max(position.begin, 1) for position in positions]
            bits = [position.loss / math.log(2) for position in positions]
            colour = _COLOURS[number % len(_COLOURS)]
            style = _STYLES[order % len(_STYLES)]
            axes.stairs(bits, [*edges, ends[-1]], baseline=None, color=colour, linestyle=style, linewidth=1.8)
            axes.plot([], [], color=colour, linestyle=style, label=f"{name}, memory {memory}")
    axes.set_xscale("symlog", linthresh=max(next(iter(next(iter(found.values())).values()))[0].end or 1, 1))
    axes.set_xlabel("position in the document (tokens)")
    axes.set_ylabel("bits per token")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    save_figure(figure, path)
