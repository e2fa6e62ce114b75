"""`python -m benchmarks.processes`: the step of one process, spread over several single-threaded processes.

Layouts of two ranks (tensor, pipeline, data) train the same model on the same global batch as one process; all take
turns, a step each.  Efficiency is tokens/s over twice those of the one process.  Two cores of a machine may be slower
together than one alone, so a row of two independent processes shows the best possible.

In a step of two ranks, `moving data` is the time in calls between processes once both have arrived, `waiting` the time
until the other one arrived: in a pipeline that is the bubble.  Both are means over ranks, of the calls themselves.

A last part trains with the loop of `brt train` and shows what else takes time in a step: waiting for data, events and
guards (the time in their code), and the stall of a save, as if there were one every 100 steps.

--layouts NAME ...  of tensor 2, pipeline 2, data 2, two alone (all)     --repeats N    steps of each (5)
--run-steps N       of the last part (12; 0: without)
--json FILE         all figures as JSON            --show FILE    print the tables of such a file, and measure nothing
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from contextlib import redirect_stdout
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.figures import add_options, keep, shows
from benchmarks.waiting import Call, shares, watched
from brt_dist.config.environment import CPU_DEFAULTS

LAYOUTS: dict[str, dict[str, int]] = {
    "one process": {"micro_batch": 4, "zero_stage": 0},
    "tensor 2": {"tensor": 2, "micro_batch": 4, "zero_stage": 0},
    "pipeline 2": {"pipeline": 2, "micro_batch": 1, "zero_stage": 1},
    "data 2": {"data": 2, "micro_batch": 4, "zero_stage": 1},
    "two alone": {"micro_batch": 4, "zero_stage": 0},
}
ALONE = "two alone"
STREAMS, SEGMENT, WINDOW, VOCAB = 8, 512, 256, 4096
SAVE_EVERY = 100  # steps


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.processes", description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--layouts", nargs="+", choices=list(LAYOUTS)[1:], default=list(LAYOUTS)[1:], help="which layouts"
    )
    parser.add_argument("--repeats", type=int, default=5, help="steps of each layout")
    parser.add_argument(
        "--run-steps", type=int, default=12, help="steps of the run that shows what else takes time in a step"
    )
    add_options(parser)
    options = parser.parse_args()
    if shows(parser, options, text):
        return
    os.environ.update(CPU_DEFAULTS, OMP_NUM_THREADS="1", PYTHONWARNINGS="ignore", GLOO_SOCKET_IFNAME="lo")
    figures: dict[str, Any] = {"layouts": measure(["one process", *options.layouts], options.repeats)}
    if options.run_steps:
        from benchmarks.run_shares import measure_run

        figures["run"] = measure_run(config("one process"), options.run_steps)
    keep(options, figures)
    print(text(figures))


def config(layout: str) -> dict[str, Any]:
    """The model on a layout, as plain values."""
    return {
        "model": {
            "layers": 4, "width": 512, "heads": 8, "head_dim": 64, "window": WINDOW, "vocab_size": VOCAB,
            "dropout": 0.0, "ffns": {"relu": {"width": 2048}},
            "mixers": {"window": {}, "recurrent": {"layers": [-3], "states": WINDOW}},
        },
        "data": {"dataset": "unused", "segment": SEGMENT, "streams": STREAMS},
        "parallel": LAYOUTS[layout],
        "optimizer": {"name": "adamw"},
        "run": {"directory": "unused", "steps": 1000, "device": "cpu", "precision": "fp32"},
    }  # fmt: skip


def ranks_of(layout: str) -> int:
    """Processes of a row."""
    sizes = LAYOUTS[layout]
    return 2 if layout == ALONE else sizes.get("tensor", 1) * sizes.get("pipeline", 1) * sizes.get("data", 1)


def measure(layouts: list[str], repeats: int) -> list[dict[str, Any]]:
    """The steps of each layout, in turns: seconds from the first rank's begin to the last one's end, and its waits."""
    context = get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        running = []
        for layout in layouts:
            connections = []
            for rank in range(ranks_of(layout)):
                ours, theirs = context.Pipe()
                place = str(Path(folder) / (f"alone {rank}" if layout == ALONE else layout))
                context.Process(target=serve, args=(theirs, layout, rank, place), daemon=True).start()
                connections.append(ours)
            running.append((connections, {"layout": layout, "ranks": len(connections), "steps": []}))
        for connections, _ in running:
            for connection in connections:
                connection.recv()
        for _ in range(repeats):
            for connections, figures in running:
                for connection in connections:
                    connection.send("step")
                figures["steps"].append(_step_of([connection.recv() for connection in connections], figures["layout"]))
        for connections, _ in running:
            for connection in connections:
                connection.send("end")
                connection.recv()
    return [figures for _, figures in running]


def _step_of(ranks: list[tuple[float, float, list[Call]]], layout: str) -> dict[str, Any]:
    begins, ends, calls = zip(*ranks, strict=True)
    step: dict[str, Any] = {"seconds": max(ends) - min(begins)}
    if len(ranks) > 1 and layout != ALONE:
        step["ranks"] = [asdict(share) for share in shares(calls)]
    return step


def serve(connection: Any, layout: str, rank: int, place: str) -> None:
    """One rank, on a core of its own: a step each time that it is asked for one."""
    import torch
    import torch.distributed as dist

    from brt_dist.config.loading import load
    from brt_dist.parallel.device import choose
    from brt_dist.parallel.layout import Layout, finalize, initialize

    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[rank % len(cores)]})
    torch.set_num_threads(1)
    given, device = load(json.dumps(config(layout)), []).config, choose("cpu", rank)
    of_rank = Layout.of(given, 0 if layout == ALONE else rank)
    initialize(of_rank, device, 300.0, dist.FileStore(place, of_rank.world_size))

    from brt_dist.parallel.engine import build_engine
    from brt_dist.parallel.micro_batches import StepInput

    with redirect_stdout(sys.stderr):  # DeepSpeed says how it cuts a pipeline
        engine = build_engine(given, of_rank, device)
    streams = len(of_rank.rows)
    starts = torch.zeros(streams, SEGMENT // WINDOW, dtype=torch.bool)
    mask = torch.ones(streams, SEGMENT, dtype=torch.bool)

    def step(number: int) -> tuple[float, float, list[Call]]:
        tokens = torch.randint(VOCAB, (streams, SEGMENT + 1))
        given = StepInput(number, starts, tokens[:, :-1], tokens[:, 1:], mask, STREAMS * SEGMENT)
        calls: list[Call] = []
        dist.barrier()  # begin together
        with watched(calls):
            begin = time.perf_counter()
            engine.train_step(given, 1e-4)
            return begin, time.perf_counter(), calls

    number = 1
    step(number)  # memory is allocated
    connection.send("ready")
    while connection.recv() != "end":
        number += 1
        connection.send(step(number))
    engine.close()
    finalize()
    connection.send("ended")


def text(figures: dict[str, Any]) -> str:
    """The tables."""
    tables = [table(figures["layouts"])]
    if "run" in figures:
        from benchmarks.run_shares import table_of_run

        tables.append(table_of_run(figures["run"], SAVE_EVERY))
    return "\n\n".join(tables)


def table(rows: list[dict[str, Any]]) -> str:
    """Medians of steps; shares are means over ranks, then medians over steps."""
    lines = [
        "| layout | tokens/s | efficiency | beside two alone | moving data | waiting for the other rank |",
        "|---|---|---|---|---|---|",
    ]
    rates = {row["layout"]: rate_of(row) for row in rows}
    for row in rows:
        name, rate = row["layout"], rates[row["layout"]]
        cells = [f"{rate:.0f}", *[""] * 4]
        if row["ranks"] > 1:
            cells[1] = f"{rate / rates['one process'] / row['ranks']:.2f}"
        if "ranks" in row["steps"][0]:
            cells[2] = f"{rate / rates[ALONE]:.2f}" if ALONE in rates else ""
            cells[3:] = [f"{share_of(row, kind):.1%}" for kind in ("moving", "waiting")]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def rate_of(row: dict[str, Any]) -> float:
    """Tokens/s of the median step, of all processes together."""
    batches = row["ranks"] if row["layout"] == ALONE else 1
    return batches * STREAMS * SEGMENT / statistics.median(step["seconds"] for step in row["steps"])


def share_of(row: dict[str, Any], kind: str) -> float:
    """The part of a step, of "moving" or "waiting"."""
    return statistics.median(
        statistics.fmean(rank[kind] for rank in step["ranks"]) / step["seconds"] for step in row["steps"]
    )


if __name__ == "__main__":
    main()
