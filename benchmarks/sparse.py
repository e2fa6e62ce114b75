"""The sparse FFN beside a dense one of the same width: FLOPs, weights read, and time of a token that is decoded alone.

`python -m benchmarks.sparse` feeds one token after the other to a dense FFN, to the sparse FFN where it reads only the
units that it chose, and to the same FFN multiplying whole matrices, in turns, on one CPU with one thread.  torch counts
the FLOPs.  --json FILE writes the figures; --show FILE prints the table of such a file.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.figures import add_options, keep, shows

Row = dict[str, Any]
SHAPES = ((512, 2048), (1024, 6144), (2048, 16384))  # D and hidden width; the second is the authors' C4-medium
BLOCK, RANK = 64, 64


def paths(width: int, hidden: int) -> dict[str, tuple[Callable[[Tensor], Tensor], int]]:
    """Each path with the elements of weights that it reads for a token.  Needs process groups of one."""
    from brt_dist.config.schema import ModelConfig
    from brt_dist.model.ffn.relu import ReluFFN
    from brt_dist.model.ffn.sparse import SparseFFN
    from brt_dist.model.linear import megatron_config
    from brt_dist.model.parameters import initialize

    model = ModelConfig(width=width, dropout=0.0)
    sparse = SparseFFN(blocks=hidden // BLOCK, block_size=BLOCK, rank=RANK)
    dense_module = ReluFFN(width=hidden).build(model, 0, megatron_config())
    sparse_module = sparse.build(model, 0, megatron_config())
    for module in (dense_module, sparse_module):
        initialize(module, 0)
    dense, units = (sum(p.numel() for p in module.parameters()) for module in (dense_module, sparse_module))

    def whole(x: Tensor) -> Tensor:
        x = sparse_module.norm(x)
        return sparse_module.masked(x, sparse_module.mask(sparse_module.controlled(x), None))

    return {
        "dense": (lambda x: dense_module(x, None), dense),
        "sparse, chosen units": (lambda x: sparse_module(x, None), units - 2 * width * (hidden - sparse.blocks)),
        "sparse, whole matrices": (whole, units),
    }


@torch.no_grad()
def measured(shapes: tuple[tuple[int, int], ...], repeats: int) -> list[Row]:
    """A row for each shape and path."""
    rows = []
    for width, hidden in shapes:
        found, tokens = paths(width, hidden), torch.randn(repeats + 3, 1, 1, width)
        taken: dict[str, list[float]] = {name: [] for name in found}
        for token in tokens:
            for name, (path, _) in found.items():
                began = time.process_time()
                path(token)
                taken[name].append(time.process_time() - began)
        for name, (path, read) in found.items():
            with FlopCounterMode(display=False) as flops:
                path(tokens[0])
            rows.append(
                {
                    "width": width, "hidden": hidden, "path": name, "flops": flops.get_total_flops(),
                    "weights_read": read, "microseconds": 1e6 * statistics.median(taken[name][3:]),
                }
            )  # fmt: skip
    return rows


def table(rows: list[Row]) -> str:
    """Markdown: each path beside the dense one of its shape."""
    lines = [
        "| D | hidden width | path | MFLOP | weights read | µs a token | of dense |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        dense = next(r for r in rows if r["hidden"] == row["hidden"] and r["path"] == "dense")
        lines.append(
            f"| {row['width']} | {row['hidden']} | {row['path']} | {row['flops'] / 1e6:.2f} "
            f"| {row['weights_read'] / 1e6:.2f} M | {row['microseconds']:.0f} "
            f"| {row['microseconds'] / dense['microseconds']:.2f} |"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--repeats", type=int, default=50, help="timed tokens")
    add_options(parser)
    options = parser.parse_args()
    if shows(parser, options, table):
        return 0
    from brt_dist.parallel.layout import single_process

    torch.set_num_threads(1)
    with single_process():
        rows = measured(SHAPES, options.repeats)
    keep(options, rows)
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
