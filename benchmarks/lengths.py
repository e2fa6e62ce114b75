"""`python -m benchmarks.lengths`: what a token costs, by its position in a document and by the segment of a step.

Positions: one stream trains on a single document of a million tokens, with memory carried; in turns with it, another
stream of the same process trains on documents as long as a segment.  Everything counts: reading, schedule, step.
Segments: a step of one stream, by tokens in the segment; each in a separate process, and the processes take turns.

One thread; seconds are CPU seconds.

--parts NAME ...  of positions, segments (both)       --tokens N   of the long document (1048576)
--repeats N       steps of each segment (3)
--json FILE       all figures as JSON                 --show FILE  print the tables of such a file, and measure nothing
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Generator
from multiprocessing import get_context
from typing import Any

from benchmarks.figures import add_options, keep, shows
from benchmarks.step import serve
from brt_dist.config.environment import CPU_DEFAULTS

PARTS = ("positions", "segments")
SEGMENT = 2048  # of the steps in a long document
SEGMENTS = (2048, 4096, 8192, 16384, 32768, 65536)
WINDOW = 128
SIZES = {
    "positions": {"width": 64, "heads": 2, "head_dim": 32, "vocab_size": 256},
    "segments": {"width": 128, "heads": 4, "head_dim": 32, "vocab_size": 4096},
}
EVERY = 4  # steps of the long document for one of the short documents


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lengths", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="which parts")
    parser.add_argument("--tokens", type=int, default=2**20, help="tokens of the long document")
    parser.add_argument("--repeats", type=int, default=3, help="steps of each segment")
    add_options(parser)
    options = parser.parse_args()
    if shows(parser, options, text):
        return
    os.environ.update(CPU_DEFAULTS, OMP_NUM_THREADS="1", PYTHONWARNINGS="ignore")
    figures: dict[str, Any] = {}
    if "positions" in options.parts:
        figures["positions"] = positions(options.tokens)
    if "segments" in options.parts:
        figures["segments"] = segments(SEGMENTS, options.repeats)
    keep(options, figures)
    print(text(figures))


def config(part: str, segment: int) -> dict[str, Any]:
    """Two layers, the first of them recurrent, one stream, as plain values."""
    width = SIZES[part]["width"]
    recurrent = {"layers": [-2], "states": WINDOW}
    return {
        "model": {**SIZES[part], "layers": 2, "window": WINDOW, "dropout": 0.0,
                  "mixers": {"window": {}, "recurrent": recurrent}, "ffns": {"relu": {"width": 4 * width}}},
        "data": {"dataset": "unused", "segment": segment, "streams": 1},
        "parallel": {"micro_batch": 1, "zero_stage": 0},
        "optimizer": {"name": "adamw"},
        "run": {"directory": "unused", "steps": 10**6, "device": "cpu", "precision": "fp32"},
    }  # fmt: skip


def positions(tokens: int) -> dict[str, list[float]]:
    """CPU seconds of all steps but the first in a document of so many tokens, and of steps in documents of one segment.

    `short` has one step for each `EVERY` of `long`, made in turns with them.
    """
    import torch

    from brt_dist.parallel.layout import single_process

    torch.set_num_threads(1)
    steps = tokens // SEGMENT
    found: dict[str, list[float]] = {"long": [], "short": []}
    with single_process() as device:
        # a document of the long run is never over, so that no step has another start
        runs = {"long": trained(device, [tokens + SEGMENT]), "short": trained(device, [SEGMENT] * (steps + 2))}
        for run in runs.values():
            next(run)  # memory is allocated, and the only start of the long document is over
        for number in range(steps - 1):
            found["long"].append(next(runs["long"]))
            if number % EVERY == 0:
                found["short"].append(next(runs["short"]))
        for run in runs.values():
            run.close()
    return found


def trained(device: Any, lengths: list[int]) -> Generator[float, None, None]:
    """CPU seconds of each step of a run on documents of these lengths."""
    import numpy as np

    from brt_dist.config.loading import load
    from brt_dist.data.in_memory import InMemoryDataset
    from brt_dist.data.reader import SegmentReader
    from brt_dist.data.stream_schedule import StreamSchedule
    from brt_dist.parallel.engine import build_engine
    from brt_dist.parallel.layout import Layout
    from brt_dist.parallel.step_input import step_input

    given = load(json.dumps(config("positions", SEGMENT)), []).config
    random = np.random.default_rng(0)
    vocab = SIZES["positions"]["vocab_size"]
    dataset = InMemoryDataset([random.integers(vocab, size=length) for length in lengths], vocab)
    schedule = StreamSchedule(dataset.lengths, streams=1, segment=SEGMENT, window=WINDOW, seed=0)
    reader, cursor, layout = SegmentReader(dataset, schedule), schedule.start(), Layout.of(given, 0)
    engine, number = build_engine(given, layout, device), 0
    try:
        while True:
            before, number = time.process_time(), number + 1
            plan, cursor = schedule.step(cursor)
            engine.train_step(step_input(number, plan, reader.read(plan, range(1)), layout, device), 1e-4)
            yield time.process_time() - before
    finally:
        engine.close()


def segments(sizes: tuple[int, ...], repeats: int) -> list[dict[str, Any]]:
    """CPU seconds of steps, and peak memory, by tokens of a segment."""
    context = get_context("spawn")
    running = []
    for size in sizes:
        ours, theirs = context.Pipe()
        process = context.Process(target=serve, args=(theirs, config("segments", size), None), daemon=True)
        process.start()
        running.append((ours, process, {"segment": size, "seconds": []}))
    for connection, _, _ in running:
        connection.recv()
    for _ in range(repeats):
        for connection, _, figures in running:
            connection.send("step")
            figures["seconds"].append(connection.recv()[0])
    for connection, process, figures in running:
        connection.send("end")
        figures["peak_bytes"] = connection.recv()
        process.join()
    return [figures for _, _, figures in running]


def text(figures: dict[str, Any]) -> str:
    """The tables."""
    tables = []
    if "positions" in figures:
        tables.append(table_of_positions(figures["positions"]))
    if "segments" in figures:
        tables.append(table_of_segments(figures["segments"]))
    return "\n\n".join(tables)


def table_of_positions(found: dict[str, list[float]]) -> str:
    """Medians, by the positions of a step in its document."""
    lines = [f"| tokens of the document | ms of a step | beside documents of {SEGMENT // 1024}k |", "|---|---|---|"]
    # number 0 is the step from SEGMENT on; the first row has those up to 32k
    steps, begin, end = len(found["long"]), 0, 15
    while begin < steps:
        took = statistics.median(found["long"][begin:end])
        beside = statistics.median(found["short"][-(-begin // EVERY) : -(-end // EVERY)])
        first, last = (1 + begin) * SEGMENT // 1024, (1 + min(end, steps)) * SEGMENT // 1024
        lines.append(f"| {first}k to {last}k | {1000 * took:.1f} | {took / beside:.2f} |")
        begin, end = end, 2 * end + 1
    return "\n".join(lines)


def table_of_segments(rows: list[dict[str, Any]]) -> str:
    """Medians, and memory for a token beyond that of the shortest segment."""
    first = rows[0]
    lines = ["| N | ms for 1k tokens | beside the first | peak GB | kB for each token more |", "|---|---|---|---|---|"]
    each = [statistics.median(row["seconds"]) / row["segment"] * 1024e3 for row in rows]
    for row, milliseconds in zip(rows, each, strict=True):
        more = row["segment"] - first["segment"]
        memory = f"{(row['peak_bytes'] - first['peak_bytes']) / more / 1e3:.1f}" if more else ""
        lines.append(
            f"| {row['segment'] // 1024}k | {milliseconds:.1f} | {milliseconds / each[0]:.2f} | "
            f"{row['peak_bytes'] / 1e9:.2f} | {memory} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
