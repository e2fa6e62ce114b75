"""The Block-State layer beside the recurrent one: time as the segment grows (arXiv 2306.09539, figure 4).

`python -m benchmarks.bst` runs the mixer of one layer on segments of 512 to 2,048 tokens, the recurrent one and each
kind of contexts in turns, on one CPU with one thread: forward only, and forward with backward.  Sizes are the paper's:
width 512, 16 heads, windows of 128 tokens, filters with a state of 16.  --json FILE writes the figures; --show FILE
prints the table of such a file.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.figures import add_options, keep, shows

Row = dict[str, Any]
RECURRENT = "recurrent"
KINDS: dict[str, dict[str, Any]] = {
    RECURRENT: {"recurrent": {"states": 128}},
    "SH": {"bst": {"contexts": "single_head"}},
    "MH": {"bst": {"contexts": "multi_head"}},
    "MF": {"bst": {"contexts": "multi_filter"}},
}
WIDTH, HEADS, WINDOW = 512, 16, 128
SEGMENTS = (512, 1024, 2048)


def mixer(kind: str, width: int, heads: int, window: int) -> tuple[torch.nn.Module, Callable[[], dict[str, Any]]]:
    """The mixer of a layer of a kind, and what makes its memory at the start of a document, for one stream."""
    from brt_dist.config.schema import ModelConfig
    from brt_dist.model.layers import Layer
    from brt_dist.model.linear import megatron_config
    from brt_dist.model.parameters import initialize

    (name, section), *_ = KINDS[kind].items()
    shape = {"layers": 1, "width": width, "heads": heads, "head_dim": width // heads, "window": window}
    model = ModelConfig.model_validate({**shape, "dropout": 0.0, "mixers": {name: {**section, "layers": None}}})
    layer = Layer(model, 0, megatron_config())
    initialize(layer, 0)
    return layer.mixer, lambda: layer.blank_memory(1)


def measured(sizes: tuple[int, int, int], segments: tuple[int, ...], repeats: int) -> list[Row]:
    """A row for each segment and kind: median CPU milliseconds.  Needs process groups of one."""
    width, heads, window = sizes
    mixers, rows = {kind: mixer(kind, width, heads, window) for kind in KINDS}, []
    for segment in segments:
        x = torch.randn(segment, 1, width, generator=torch.Generator().manual_seed(0))
        starts = torch.zeros(1, segment // window, dtype=torch.bool)
        starts[0, 0] = True
        taken: dict[tuple[str, bool], list[float]] = {(kind, way): [] for kind in KINDS for way in (False, True)}
        for _ in range(repeats + 1):
            for (kind, trains), times in taken.items():
                module, memory = mixers[kind]
                given = x.clone().requires_grad_(trains)
                began = time.process_time()
                with torch.set_grad_enabled(trains):
                    y, _ = module(given, memory(), starts)
                    if trains:
                        y.sum().backward()
                times.append(1e3 * (time.process_time() - began))
        rows += [
            {"segment": segment, "kind": kind, "trains": trains, "milliseconds": statistics.median(times[1:])}
            for (kind, trains), times in taken.items()
        ]
    return rows


def table(rows: list[Row]) -> str:
    """Markdown: the recurrent layer's time, and how many times less each kind of contexts takes."""
    kinds = [kind for kind in KINDS if kind != RECURRENT]
    lines = ["| N | | recurrent, ms | " + " | ".join(kinds) + " |", "|---|---|---|" + "---|" * len(kinds)]
    for segment in dict.fromkeys(row["segment"] for row in rows):
        for trains in (False, True):
            found = {
                row["kind"]: row["milliseconds"]
                for row in rows
                if row["segment"] == segment and row["trains"] == trains
            }
            shown = " | ".join(f"{found[RECURRENT] / found[kind]:.2f}x" for kind in kinds)
            way = "with backward" if trains else "forward"
            lines.append(f"| {segment} | {way} | {found[RECURRENT]:.0f} | {shown} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--repeats", type=int, default=3, help="timed runs")
    add_options(parser)
    options = parser.parse_args()
    if shows(parser, options, table):
        return 0
    from brt_dist.parallel.layout import single_process

    torch.set_num_threads(1)
    with single_process():
        rows = measured((WIDTH, HEADS, WINDOW), SEGMENTS, options.repeats)
    keep(options, rows)
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
