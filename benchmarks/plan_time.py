"""Time of a step, planned from a calibration and measured: `python -m benchmarks.plan_time`.

Kinds of models, widths, micro-batches and layouts on the CPUs of this machine, all with the same tokens per step.
Calibrate first, and run both while nothing else runs:

brt plan --calibrate --device cpu --out device.yaml
python -m benchmarks.plan_time --device device.yaml --json docs/results/plan_time.json  # again: the missing rows
python -m benchmarks.plan_time --show docs/results/plan_time.json
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from queue import Empty
from typing import Any

from benchmarks.figures import add_options, keep, shows
from brt_dist.config.environment import CPU_DEFAULTS
from brt_dist.config.loading import load
from brt_dist.config.schema import Config
from brt_dist.planning.devices import Calibration, read_device
from brt_dist.planning.layout_plan import Planner
from brt_dist.planning.step_time import StepTime

STREAMS, SEGMENT, WINDOW, VOCAB = 4, 512, 128, 4096
WARM_UP, FEWEST, MOST, SECONDS = 1, 4, 15, 6.0  # steps of a pair, and seconds for them
APART = 1.1  # times as long: pairs whose order must be right
REFERENCE = "window, D 512, one rank"  # the row by which the calibration is corrected, as if it were a run

RECURRENT = {"window": {}, "recurrent": {"layers": [-2], "states": WINDOW}}


@dataclass(frozen=True)
class Pair:
    """A model and a layout."""

    model: str
    mixers: dict[str, Any]
    width: int
    layout: dict[str, Any] = field(default_factory=dict)
    layers: int = 4

    @property
    def name(self) -> str:
        words = " ".join(f"{key}={value}" for key, value in self.layout.items())
        return f"{self.model}, D {self.width}, {words or 'one rank'}"

    @property
    def config(self) -> Config:
        """Four micro-batches where the layout says nothing else."""
        width = self.width
        values = {
            "model": {
                "layers": self.layers, "width": width, "heads": width // 64, "head_dim": 64, "window": WINDOW,
                "vocab_size": VOCAB, "dropout": 0.0, "mixers": self.mixers, "ffns": {"relu": {"width": 4 * width}},
            },
            "data": {"dataset": "none", "segment": SEGMENT, "streams": STREAMS},
            "parallel": {"micro_batch": 1, **self.layout},
            "optimizer": {"name": "adamw"},
            "run": {"directory": "none", "steps": 1000, "device": "cpu", "precision": "fp32"},
        }  # fmt: skip
        return load(json.dumps(values), []).config


PAIRS = [
    Pair("window", {"window": {}}, 256),
    Pair("window", {"window": {}}, 256, {"micro_batch": 4}),
    Pair("window", {"window": {}}, 512),
    Pair("window", {"window": {}}, 768, {"micro_batch": 2}),
    Pair("window", {"window": {}}, 512, {"recompute": "layer"}),
    Pair("fixed:skip", RECURRENT, 256),
    Pair("fixed:skip", RECURRENT, 512),
    Pair("fixed:skip", RECURRENT, 512, {"micro_batch": 4}),
    Pair("linear attention", {"linear": {}}, 512),
    Pair("gated delta rule", {"gated_delta": {}}, 256),
    Pair("window", {"window": {}}, 512, {"tensor": 2}),
    Pair("window", {"window": {}}, 512, {"tensor": 2, "sequence_parallel": True}),
    Pair("fixed:skip", RECURRENT, 512, {"tensor": 2}),
    Pair("window", {"window": {}}, 512, {"pipeline": 2}),
    Pair("fixed:skip", RECURRENT, 512, {"pipeline": 2}),
    Pair("window", {"window": {}}, 512, {"data": 2, "zero_stage": 1}),
    Pair("window", {"window": {}}, 512, {"data": 2, "zero_stage": 2}),
    Pair("fixed:skip", RECURRENT, 512, {"data": 2, "zero_stage": 1, "micro_batch": 2}),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", type=Path, help="calibration of this machine")
    parser.add_argument("--only", nargs="+", type=int, help="numbers of pairs, from 0")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="seconds for a pair")
    add_options(parser)
    options = parser.parse_args()
    if shows(parser, options, text):
        return
    if options.device is None:
        parser.error("--device FILE is needed: brt plan --calibrate --device cpu --out FILE")
    calibration = read_device(options.device)
    if not isinstance(calibration, Calibration):
        parser.error(f"{options.device} is not a calibration")
    figures: dict[str, Any] = {"calibration": calibration.model_dump(mode="json"), "pairs": []}
    if options.json and options.json.is_file():
        before = json.loads(options.json.read_text())
        if before["calibration"] == figures["calibration"]:
            figures = before
    known = {row["name"] for row in figures["pairs"]}
    wanted = [PAIRS[number] for number in options.only or range(len(PAIRS))]
    for row in measured([pair for pair in wanted if pair.name not in known], options.seconds):
        print(f"{row['name']}: {statistics.median(row['seconds']):.3f} s", file=sys.stderr)
        figures["pairs"] = sorted(
            [*figures["pairs"], row], key=lambda row: [pair.name for pair in PAIRS].index(row["name"])
        )
        keep(options, figures)
    print(text(figures))


def measured(pairs: Sequence[Pair], seconds: float) -> Iterator[dict[str, Any]]:
    """Of each pair the seconds of its steps, and of the parts of one."""
    for ranks in sorted({pair.config.parallel.world_size for pair in pairs}):
        mine = [pair for pair in pairs if pair.config.parallel.world_size == ranks]
        os.environ["OMP_NUM_THREADS"] = str(max((os.cpu_count() or 1) // ranks, 1))  # as `brt train` has it
        os.environ.update(CPU_DEFAULTS, GLOO_SOCKET_IFNAME="lo")
        context = get_context("spawn")
        results = context.Queue()
        with tempfile.TemporaryDirectory() as folder:
            given = folder, [pair.config for pair in mine], seconds, results
            processes = [context.Process(target=rank_main, args=(rank, *given)) for rank in range(ranks)]
            for process in processes:
                process.start()
            for pair in mine:
                while (row := _next(results)) is None:
                    if any(process.exitcode for process in processes):
                        raise SystemExit("a rank failed")
                yield {"name": pair.name, **row}
            for process in processes:
                process.join()


def _next(results: Any) -> dict[str, Any] | None:
    with suppress(Empty):
        row: dict[str, Any] = results.get(timeout=1.0)
        return row
    return None


def rank_main(rank: int, folder: str, configs: Sequence[Config], seconds: float, results: Any) -> None:
    """A rank: all configs, one after the other."""
    import torch.distributed as dist

    from brt_dist.parallel.device import choose
    from brt_dist.parallel.layout import Layout, finalize, initialize

    device = choose("cpu", rank)
    for number, config in enumerate(configs):
        layout = Layout.of(config, rank)
        initialize(layout, device, 120.0, dist.FileStore(f"{folder}/{number}", layout.world_size))
        took, parts = zip(*steps(config, layout, device, seconds), strict=True)
        if rank == 0:
            medians = {name: statistics.median(each[name] for each in parts) for name in parts[0]}
            results.put({"seconds": took, "parts": medians})
        finalize()


def steps(config: Config, layout: Any, device: Any, seconds: float) -> Iterator[tuple[float, dict[str, float]]]:
    """Seconds of each step after warming up, of the rank that takes longest, and of the parts of this rank's."""
    import torch

    from brt_dist.parallel.engine import build_engine
    from brt_dist.parallel.layout import agree
    from brt_dist.parallel.micro_batches import StepInput

    engine = build_engine(config, layout, device)
    streams = config.data.streams // config.parallel.data
    starts = torch.zeros(streams, SEGMENT // config.model.window, dtype=torch.bool)
    mask = torch.ones(streams, SEGMENT, dtype=torch.bool)
    count = WARM_UP + FEWEST
    number = 0
    while number < count:
        number += 1
        tokens = torch.randint(config.model.vocab_size or 0, (streams, SEGMENT + 1))
        given = StepInput(number, starts, tokens[:, :-1], tokens[:, 1:], mask, config.data.streams * SEGMENT)
        agree((0.0,), device)  # begin together
        begin = time.perf_counter()
        with engine.timed() as timer:
            engine.train_step(given, 1e-4)
        (took,) = agree((time.perf_counter() - begin,), device)
        if number == WARM_UP:
            count = WARM_UP + min(max(int(seconds / took), FEWEST), MOST)
        if number > WARM_UP:
            yield took, timer.parts()
    engine.close()


@dataclass(frozen=True)
class Compared:
    """Seconds of a step: planned from the calibration, from it as the reference corrects it, and measured."""

    name: str
    planned: float
    corrected: float
    measured: float


def compared(figures: dict[str, Any]) -> list[Compared]:
    """Each pair as planned anew, and as measured."""
    calibration = Calibration.model_validate(figures["calibration"])
    measured = {one["name"]: statistics.median(one["seconds"]) for one in figures["pairs"]}
    pairs = {pair.name: pair for pair in PAIRS}
    reference = step_time(pairs[REFERENCE], calibration)
    factor = 1 + (measured[REFERENCE] - reference.total) / reference.compute  # as `brt plan --calibrate --from`
    ranks = {count: spec.model_copy(update={"correction": factor}) for count, spec in calibration.ranks.items()}
    corrected = calibration.model_copy(update={"ranks": ranks})
    return [
        Compared(name, *(step_time(pairs[name], one).total for one in (calibration, corrected)), seconds)
        for name, seconds in measured.items()
    ]


def step_time(pair: Pair, calibration: Calibration) -> StepTime:
    """The plan of a step in which nothing is saved."""
    config = pair.config
    found = Planner(config, calibration.of(config.parallel.world_size)).plan(config.parallel).time
    return replace(found, checkpoint=0.0)


def errors(rows: Sequence[Compared], corrected: bool) -> list[float]:
    """Planned over measured, less 1; with the correction, of all but the reference."""
    if not corrected:
        return [row.planned / row.measured - 1 for row in rows]
    return [row.corrected / row.measured - 1 for row in rows if row.name != REFERENCE]


def misordered(rows: Sequence[Compared]) -> list[tuple[str, str]]:
    """Pairs of rows of which the first took more than 10 % longer, and is planned, corrected, to take less."""
    return [(a.name, b.name) for a, b in apart(rows) if a.corrected <= b.corrected]


def apart(rows: Sequence[Compared]) -> list[tuple[Compared, Compared]]:
    return [(a, b) for a in rows for b in rows if a.measured > APART * b.measured]


def text(figures: dict[str, Any]) -> str:
    """The table, and what it comes to."""
    rows = compared(figures)
    lines = [
        "| model and layout | measured s | planned s | error | corrected s | error |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        error = "" if row.name == REFERENCE else f"{row.corrected / row.measured - 1:+.0%}"
        cells = (row.name, f"{row.measured:.3f}", f"{row.planned:.3f}", f"{row.planned / row.measured - 1:+.0%}")
        lines.append(f"| {' | '.join((*cells, f'{row.corrected:.3f}', error))} |")
    planned, corrected = ([abs(error) for error in errors(rows, which)] for which in (False, True))
    count = len(apart(rows))
    return "\n".join(
        [
            *lines,
            "",
            f"Median error {statistics.median(planned):.0%}, largest {max(planned):.0%}; corrected",
            f"{statistics.median(corrected):.0%} and {max(corrected):.0%}. Of the {count} pairs of rows that",
            f"are more than 10 % apart, the corrected plan puts {len(misordered(rows))} in the wrong order.",
        ]
    )


if __name__ == "__main__":
    main()
