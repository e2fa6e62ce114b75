"""`python -m benchmarks.step`: what a whole training step costs: forward, backward, clipping and AdamW, one process.

Each row trains in a separate process; the processes take turns, one step each, so that a temporarily busy machine slows
all rows alike.  On a CPU each has one thread and seconds are CPU seconds of the process; on a GPU they are wall-clock
seconds, from idle to idle.  On a CPU our processes have the environment of the ranks of `brt train`, others
have the default one.  The rate is the best matrix product of the same process in the same precision; useful FLOPs count
visible pairs only and nothing that is computed twice.

--device D          cpu (default): fp32, small shapes; cuda: bf16, the shapes of the paper
--shapes NAME ...   of small, medium, tiny on a CPU, of 150m, 1b3 on a GPU (all)      --repeats N    steps of each row
--rows NAME ...     which rows (all)               --peers       also other implementations, at as many parameters (CPU)
--against KEY=VALUE each row also with this setting, for example model.attention_kernel=plain
--profile FILE      the first row's step, operator by operator, as text
--json FILE         all figures as JSON           --show FILE    print the table of such a file, and measure nothing
"""

import argparse
import os
import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.figures import add_options, keep, shows
from brt_dist.config.environment import CPU_DEFAULTS

RECURRENT = {"window": {}, "recurrent": {"layers": [-3]}}
ROWS: dict[str, dict[str, Any]] = {
    "fixed:skip": {"mixers": RECURRENT},
    "sliding window": {"mixers": {"window": {}}},
    "sliding window, a layer more": {"mixers": {"window": {}}, "more_layers": 1},
    "XL, window and segment N/2": {"mixers": {"window": {}}, "xl": True},
}
SHAPES: dict[str, dict[str, dict[str, int]]] = {
    "cpu": {
        "small": {"width": 512, "layers": 4, "heads": 4, "head_dim": 128, "segment": 2048, "window": 256, "streams": 1},
        "medium": {
            "width": 1024, "layers": 3, "heads": 8, "head_dim": 128, "segment": 4096, "window": 512, "streams": 1,
        },
        "tiny": {"width": 128, "layers": 4, "heads": 4, "head_dim": 32, "segment": 512, "window": 32, "streams": 16},
    },
    "cuda": {
        "150m": {
            "width": 1024, "layers": 12, "heads": 8, "head_dim": 128, "segment": 4096, "window": 512, "streams": 8,
        },
        "1b3": {
            "width": 2048, "layers": 24, "heads": 16, "head_dim": 128, "segment": 4096, "window": 512, "streams": 2,
        },
    },
}  # fmt: skip
VOCAB = {"cpu": 4096, "cuda": 32768}
WARM_UP = {"cpu": 1, "cuda": 3}
PRODUCT = {"cpu": 1024, "cuda": 8192}  # rows and columns


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", choices=SHAPES, default="cpu", help="which device")
    parser.add_argument("--shapes", nargs="+", help="which shapes")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), help="which rows")
    parser.add_argument("--repeats", type=int, default=5, help="steps of each row")
    parser.add_argument(
        "--peers", action="store_true", help="also other implementations with as many parameters; CPU only"
    )
    parser.add_argument("--against", metavar="KEY=VALUE", help="run each row also with this setting")
    parser.add_argument(
        "--profile", type=Path, metavar="FILE", help="write the first row's step to this file, operator by operator"
    )
    add_options(parser)
    options = parser.parse_args()
    if shows(parser, options, table):
        return
    shapes = options.shapes or list(SHAPES[options.device])
    if unknown := set(shapes) - set(SHAPES[options.device]):
        parser.error(
            f"no shape {', '.join(unknown)} for {options.device}; there is {', '.join(SHAPES[options.device])}"
        )
    if options.peers and options.device != "cpu":
        parser.error("--peers runs on a CPU only")
    os.environ["PYTHONWARNINGS"] = "ignore"
    if options.device == "cpu":
        os.environ.update(CPU_DEFAULTS, OMP_NUM_THREADS="1")
    figures = []
    for shape in shapes:
        figures += measure(
            options.device, shape, options.rows, options.repeats, options.against, options.profile, options.peers
        )
        print(table([row for row in figures if row["shape"] == shape]), flush=True)
        keep(options, figures)


def measure(
    device: str, shape: str, rows: list[str], repeats: int, against: str | None, profile: Path | None, peers: bool
) -> list[dict[str, Any]]:
    """The figures of each row of a shape; the rows take turns."""
    from benchmarks.peers import PEERS

    context = get_context("spawn")
    running: list[tuple[Connection, Any, dict[str, Any]]] = []
    for row in rows:
        for override in (None, against) if against else (None,):
            ours, theirs = context.Pipe()
            process = context.Process(target=serve, args=(theirs, config(device, shape, row), override), daemon=True)
            process.start()
            running.append((ours, process, {"shape": shape, "row": f"{row}, {override}" if override else row}))
    for connection, _, figures in running:
        figures |= {**connection.recv(), "seconds": [], "rates": []}
    for peer in PEERS if peers else ():
        ours, theirs = context.Pipe()
        first = running[0][2]
        process = context.Process(target=serve_peer, args=(theirs, peer, shape, first["parameters"]), daemon=True)
        with _without(CPU_DEFAULTS):
            process.start()
        running.append((ours, process, {"shape": shape, "row": peer}))
        running[-1][2].update({**ours.recv(), "seconds": [], "rates": []})
    for _ in range(repeats):
        for connection, _, figures in running:
            connection.send("step")
            seconds, rate = connection.recv()
            figures["seconds"].append(seconds)
            figures["rates"].append(rate)
    for number, (connection, process, figures) in enumerate(running):
        if number == 0 and profile is not None:
            connection.send("profile")
            profile.write_text(connection.recv())
        connection.send("end")
        figures["peak_bytes"] = connection.recv()
        process.join()
    return [figures for _, _, figures in running]


@contextmanager
def _without(variables: Mapping[str, str]) -> Iterator[None]:
    """What starts in the block does not have these environment variables."""
    taken = {name: os.environ.pop(name) for name in variables if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(taken)


def config(device: str, shape: str, row: str) -> dict[str, Any]:
    """The config of a row, as plain values."""
    sizes, kind = dict(SHAPES[device][shape]), dict(ROWS[row])
    segment, streams = sizes.pop("segment"), sizes.pop("streams")
    sizes["layers"] += kind.pop("more_layers", 0)
    if kind.pop("xl", False):
        sizes["window"] = segment = segment // 2
    width = sizes["width"]
    mixers = {name: {**mixer, **({"states": sizes["window"]} if name == "recurrent" else {})}
              for name, mixer in kind["mixers"].items()}  # fmt: skip
    model = {**sizes, "mixers": mixers, "ffns": {"relu": {"width": 4 * width}}, "vocab_size": VOCAB[device]}
    return {
        "model": {**model, "dropout": 0.0},
        "data": {"dataset": "unused", "segment": segment, "streams": streams},
        "parallel": {"micro_batch": streams, "zero_stage": {"cpu": 0, "cuda": 1}[device]},  # bf16 needs ZeRO
        "optimizer": {"name": "adamw"},
        "run": {"directory": "unused", "steps": 1000, "device": device,
                "precision": {"cpu": "fp32", "cuda": "bf16"}[device]},
    }  # fmt: skip


def serve(connection: Connection, values: dict[str, Any], override: str | None) -> None:
    """One row: a step each time that it is asked for one."""
    import torch
    import yaml

    from brt_dist.config.loading import load
    from brt_dist.parallel.layout import Layout, single_process
    from brt_dist.planning.flops import TRAINING, forward_flops
    from brt_dist.planning.memory import plan_of

    given = load(yaml.safe_dump(values), [override] if override else []).config
    kind = given.run.device
    if kind == "cpu":
        torch.set_num_threads(1)
    streams, segment = given.data.streams, given.data.segment
    with single_process(kind) as device:
        from brt_dist.parallel.engine import build_engine
        from brt_dist.parallel.micro_batches import StepInput

        engine = build_engine(given, Layout.of(given, 0), device)
        starts = torch.zeros(streams, segment // given.model.window, dtype=torch.bool, device=device.torch)
        mask = torch.ones(streams, segment, dtype=torch.bool, device=device.torch)
        now = time.process_time if kind == "cpu" else time.perf_counter

        def step(number: int) -> float:
            tokens = torch.randint(given.model.vocab_size or 0, (streams, segment + 1)).to(device.torch)
            device.synchronize()
            before = now()
            engine.train_step(StepInput(number, starts, tokens[:, :-1], tokens[:, 1:], mask, mask.numel()), 1e-4)
            device.synchronize()
            return now() - before

        number = WARM_UP[kind]
        for warming in range(number):  # memory is allocated, kernels are compiled
            step(warming + 1)
        connection.send(
            {
                "device": device.name,
                "parameters": sum(parameter.local.numel() for parameter in engine.parameters),
                "tokens": streams * segment,
                "useful_flops": TRAINING * forward_flops(given.model) * streams * segment,
                "planned_bytes": plan_of(given).fullest_rank.device,
                "held_bytes": torch.cuda.memory_allocated() if kind == "cuda" else None,
            }
        )
        while (asked := connection.recv()) != "end":
            number += 1
            if asked == "profile":
                connection.send(profiled(lambda: step(number), kind))  # noqa: B023
            else:
                connection.send((step(number), product_rate(device, given.run.precision, PRODUCT[kind])))
        connection.send(device.peak_memory_bytes())
        engine.close()


def serve_peer(connection: Connection, name: str, shape: str, parameters: int) -> None:
    """A row of another implementation, one thread on a CPU."""
    import resource

    import torch

    from benchmarks.peers import Peer
    from brt_dist.parallel.device import Device

    torch.set_num_threads(1)
    sizes, vocab = SHAPES["cpu"][shape], VOCAB["cpu"]
    peer = Peer(name, sizes, vocab, parameters)

    def step() -> float:
        tokens = torch.randint(vocab, (sizes["streams"], sizes["segment"] + 1))
        before = time.process_time()
        peer.step(tokens)
        return time.process_time() - before

    step()
    tokens = sizes["streams"] * sizes["segment"]
    connection.send({"device": "cpu", "parameters": peer.parameters, "tokens": tokens})
    while connection.recv() != "end":
        connection.send((step(), product_rate(Device("cpu", 0), "fp32", PRODUCT["cpu"])))
    connection.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def profiled(step: Any, kind: str) -> str:
    """The operators of a step, by their own time on the device, and on the CPU."""
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if kind == "cuda" else [])
    with profile(activities=activities) as seen:
        step()
    orders = dict.fromkeys([f"self_{kind}_time_total", "self_cpu_time_total"])
    tables = (seen.key_averages().table(sort_by=order, row_limit=60, max_name_column_width=90) for order in orders)
    return "\n".join(tables)


def product_rate(device: Any, precision: str, size: int, tries: int = 5) -> float:
    """FLOP/s of the best of some matrix products."""
    import torch

    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(size, size, device=device.torch, dtype=dtype) for _ in range(2))
    now = time.process_time if device.kind == "cpu" else time.perf_counter
    best = float("inf")
    for _ in range(tries):
        device.synchronize()
        before = now()
        a @ b
        device.synchronize()
        best = min(best, now() - before)
    return 2 * size**3 / best


def table(rows: list[dict[str, Any]]) -> str:
    """Of one shape: medians, the range of tokens/s, and the seconds of a token beside those of the first row."""
    sizes, first = next(shapes[rows[0]["shape"]] for shapes in SHAPES.values() if rows[0]["shape"] in shapes), rows[0]
    lines = [
        f"{first['shape']}: D {sizes['width']}, {sizes['layers']} layers, N {sizes['segment']}, W {sizes['window']}, "
        f"{sizes['streams']} streams, on {first['device']}",
        "",
        "| row | parameters M | tokens/s | range | FLOPs/rate | TFLOP/s | peak GB | seconds/token |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        rates = sorted(row["tokens"] / seconds for seconds in row["seconds"])
        share, rate = "", ""
        if useful := row.get("useful_flops"):
            shares = (useful / seconds / rate for seconds, rate in zip(row["seconds"], row["rates"], strict=True))
            share, rate = f"{statistics.median(shares):.2f}", f"{useful / statistics.median(row['seconds']) / 1e12:.3g}"
        median = statistics.median(row["seconds"])
        relative = (median / row["tokens"]) / (statistics.median(first["seconds"]) / first["tokens"])
        lines.append(
            f"| {row['row']} | {row['parameters'] / 1e6:.1f} | {row['tokens'] / median:.0f} | "
            f"{rates[0]:.0f} to {rates[-1]:.0f} | {share} | {rate} | "
            f"{row['peak_bytes'] / 1e9:.2f} | {relative:.2f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
