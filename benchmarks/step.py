"""`python -m benchmarks.step`: what a whole training step costs on a CPU core: forward, backward, clipping and AdamW.

Each row trains in a process of its own, with one thread; the processes take turns, one step each, so that a machine
that is busy for a while slows all rows alike.  Seconds are CPU seconds of the process.  The rate is the best fp32
matrix product of the same process; useful FLOPs count visible pairs only and nothing that is computed twice.

--shapes NAME ...   of small, medium, tiny (all)          --repeats N    steps of each row (5)
--against KEY=VALUE each row also with this setting, for example model.attention_kernel=plain
--json FILE         all figures as JSON
"""

import argparse
import json
import os
import statistics
import time
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

VOCAB = 4096
RECURRENT = {"window": {}, "recurrent": {"layers": [-2]}}
ROWS: dict[str, dict[str, Any]] = {
    "fixed:skip": {"mixers": RECURRENT},
    "sliding window": {"mixers": {"window": {}}},
    "sliding window, a layer more": {"mixers": {"window": {}}, "more_layers": 1},
    "XL, window and segment N/2": {"mixers": {"window": {}}, "xl": True},
}
SHAPES: dict[str, dict[str, int]] = {
    "small": {"width": 512, "layers": 4, "heads": 4, "head_dim": 128, "segment": 2048, "window": 256, "streams": 1},
    "medium": {"width": 1024, "layers": 3, "heads": 8, "head_dim": 128, "segment": 4096, "window": 512, "streams": 1},
    "tiny": {"width": 128, "layers": 4, "heads": 4, "head_dim": 32, "segment": 512, "window": 32, "streams": 16},
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES), help="which shapes")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), help="which rows")
    parser.add_argument("--repeats", type=int, default=5, help="steps of each row")
    parser.add_argument("--against", metavar="KEY=VALUE", help="each row also with this setting")
    parser.add_argument("--json", type=Path, metavar="FILE", help="all figures as JSON")
    options = parser.parse_args()
    os.environ.update(OMP_NUM_THREADS="1", DS_ACCELERATOR="cpu", PYTHONWARNINGS="ignore")
    figures = []
    for shape in options.shapes:
        figures += measure(shape, options.rows, options.repeats, options.against)
        print_table(shape, figures)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))


def measure(shape: str, rows: list[str], repeats: int, against: str | None) -> list[dict[str, Any]]:
    """The figures of each row of a shape; the rows take turns."""
    context = get_context("spawn")
    running = []
    for row in rows:
        for override in (None, against) if against else (None,):
            ours, theirs = context.Pipe()
            process = context.Process(target=serve, args=(theirs, config(shape, row), override), daemon=True)
            process.start()
            name = f"{row}, {override}" if override else row
            running.append((ours, process, {"shape": shape, "row": name, **ours.recv(), "seconds": [], "rates": []}))
    for _ in range(repeats):
        for connection, _, figures in running:
            connection.send(True)
            seconds, rate = connection.recv()
            figures["seconds"].append(seconds)
            figures["rates"].append(rate)
    for connection, process, figures in running:
        connection.send(False)
        figures["peak_bytes"] = connection.recv()
        process.join()
    return [figures for _, _, figures in running]


def config(shape: str, row: str) -> dict[str, Any]:
    """The config of a row, as plain values."""
    sizes, kind = dict(SHAPES[shape]), dict(ROWS[row])
    segment, streams = sizes.pop("segment"), sizes.pop("streams")
    sizes["layers"] += kind.pop("more_layers", 0)
    if kind.pop("xl", False):
        sizes["window"] = segment = segment // 2
    width = sizes["width"]
    mixers = {name: {**mixer, **({"states": sizes["window"]} if name == "recurrent" else {})}
              for name, mixer in kind["mixers"].items()}  # fmt: skip
    model = {**sizes, "mixers": mixers, "ffns": {"relu": {"width": 4 * width}}, "vocab_size": VOCAB, "dropout": 0.0}
    return {
        "model": model,
        "data": {"dataset": "unused", "segment": segment, "streams": streams},
        "parallel": {"micro_batch": streams},
        "optimizer": {"name": "adamw"},
        "run": {"directory": "unused", "steps": 1000, "precision": "fp32", "device": "cpu"},
    }


def serve(connection: Connection, values: dict[str, Any], override: str | None) -> None:
    """One row: a step each time that it is asked for one."""
    import torch
    import yaml

    torch.set_num_threads(1)
    from brt_dist.config.loading import load
    from brt_dist.parallel.engine import StepInput, build_engine
    from brt_dist.parallel.layout import Layout, single_process
    from brt_dist.planning.flops import TRAINING, forward_flops

    given = load(yaml.safe_dump(values), [override] if override else []).config
    streams, segment = given.data.streams, given.data.segment
    with single_process() as device:
        engine = build_engine(given, Layout.of(given, 0), device)
        starts = torch.zeros(streams, segment // given.model.window, dtype=torch.bool)
        mask = torch.ones(streams, segment, dtype=torch.bool)

        def step(number: int) -> float:
            tokens = torch.randint(VOCAB, (streams, segment + 1))
            before = time.process_time()
            engine.train_step(StepInput(number, starts, tokens[:, :-1], tokens[:, 1:], mask, mask.numel()), 1e-4)
            return time.process_time() - before

        step(1)  # memory is allocated
        connection.send(
            {
                "parameters": sum(parameter.local.numel() for parameter in engine.parameters),
                "tokens": streams * segment,
                "useful_flops": TRAINING * forward_flops(given.model) * streams * segment,
            }
        )
        number = 1
        while connection.recv():
            number += 1
            connection.send((step(number), product_rate()))
        connection.send(device.peak_memory_bytes())
        engine.close()


def product_rate(size: int = 1024, tries: int = 5) -> float:
    """FLOP/s of the best of some fp32 matrix products, by CPU seconds."""
    import torch

    a, b = torch.randn(size, size), torch.randn(size, size)
    best = float("inf")
    for _ in range(tries):
        before = time.process_time()
        a @ b
        best = min(best, time.process_time() - before)
    return 2 * size**3 / best


def print_table(shape: str, figures: list[dict[str, Any]]) -> None:
    """One line a row: medians, and the range of tokens/s."""
    sizes = SHAPES[shape]
    print(f"\n{shape}: D {sizes['width']}, {sizes['layers']} layers, N {sizes['segment']}, W {sizes['window']}, "
          f"{sizes['streams']} streams")  # fmt: skip
    print(f"{'row':58} {'params M':>8} {'tokens/s':>8} {'range':>13} {'FLOPs/rate':>10} {'peak GB':>7} {'step':>6}")
    here = [row for row in figures if row["shape"] == shape]
    for row in here:
        rates = sorted(row["tokens"] / seconds for seconds in row["seconds"])
        share = statistics.median(
            row["useful_flops"] / seconds / rate for seconds, rate in zip(row["seconds"], row["rates"], strict=True)
        )
        per_token = statistics.median(row["seconds"]) / row["tokens"]
        first = statistics.median(here[0]["seconds"]) / here[0]["tokens"]
        print(
            f"{row['row']:58} {row['parameters'] / 1e6:8.1f} {statistics.median(rates):8.0f} "
            f"{rates[0]:6.0f} {rates[-1]:6.0f} {share:10.2f} {row['peak_bytes'] / 1e9:7.2f} {per_token / first:6.2f}"
        )


if __name__ == "__main__":
    main()
