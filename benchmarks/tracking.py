"""`python -m benchmarks.tracking`: what tracking costs a step.

`brt train` trains the same small model on one rank, alternating between: no tracking, an MLflow server, a server that
accepts connections and never answers, and no server at the port.  The server would normally be another machine: here
it has the last core to itself, and the rank, the launcher and the syncer share the others.  The median and the mean
are over the steps after the first fifth (a delayed step shows in the mean); ratios are to no tracking in the same
round, and their spread is over the rounds.  `end` is the time from the last step's event until `brt train` exits, in
which the rest is sent or given up.

Runs on a shared machine differ by more than the effect to be measured, so there is one more kind: in `alternating`,
with a live server, the syncer is paused (SIGSTOP) and resumed every few seconds of one run, and the ratio is that of
the steps with it to the steps without it.  Once resumed, it sends what it could not send meanwhile.

--turns N   runs of each kind (3)     --steps N   steps of a run (400)     --kinds KIND ...   only these
"""

import argparse
import json
import math
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil

from brt_dist.event_log import events_of
from brt_dist.events import StepEvent
from tests.mlflow_server import mlflow_server
from tests.ports import dead_port, free_port

KINDS = ("off", "server", "alternating", "silent", "none there")
PAUSE_SECONDS = 6.0  # the syncer asks every five
CONFIG = """\
model: {{layers: 2, width: 128, heads: 4, head_dim: 32, mlp_width: 512, window: 64, states: 64, recurrent_layers: [-1]}}
data: {{dataset: {data}, segment: 256, streams: 4}}
parallel: {{micro_batch: 4}}
optimizer: {{warmup_steps: 10}}
run:
  {{directory: {run}, steps: {steps}, precision: fp32, device: cpu, checkpoint_every: 1000000, evaluation_steps: 1,
  tracking: {{enabled: {enabled}, uri: "{uri}", system_seconds: 5}}}}
"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tracking", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--turns", type=int, default=3, help="runs of each kind")
    parser.add_argument("--steps", type=int, default=400, help="steps of a run")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="only these")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        build(folder)
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[-1:])  # what is started has it too
        live = stack.enter_context(mlflow_server(folder / "server", free_port()))
        os.sched_setaffinity(0, cores[:-1] or cores)
        print(f"the server on 1 core, runs on {len(cores[:-1]) or 'the same'}", file=sys.stderr)
        silent = stack.enter_context(silent_server())
        nobody = f"http://127.0.0.1:{stack.enter_context(dead_port())}"
        uris = dict(zip(KINDS, (None, live, live, silent, nobody), strict=True))
        figures: list[dict[str, Any]] = []
        for turn in range(options.turns):
            first = turn % len(options.kinds)  # what comes first may have the machine in another state
            for kind in (*options.kinds[first:], *options.kinds[:first]):
                found = measure(folder / f"{kind} {turn}", uris[kind], options.steps, kind == "alternating")
                figures.append({"kind": kind, "turn": turn, **found})
                told = ", ".join(f"{name} {value:.4f} s" for name, value in found.items())
                print(f"turn {turn + 1}, {kind}: {told}", file=sys.stderr)
    if options.json:
        print(json.dumps(figures))
        return
    print(f"{'tracking':12} {'of a step':10} {'ms':>8} {'ratio':>7} {'least':>7} {'most':>7} {'end s':>7}")
    for kind in options.kinds:
        rows = [row for row in figures if row["kind"] == kind]
        end = statistics.median(row["end"] for row in rows)
        for figure in ("median", "mean"):
            off = [row[figure] for row in figures if row["kind"] == "off"] or [math.nan] * options.turns
            if kind == "alternating":
                off = [row[f"{figure} without"] for row in rows]
            ratios = [row[figure] / base for row, base in zip(rows, off, strict=True)]
            print(
                f"{kind:12} {figure:10} {statistics.median(row[figure] for row in rows) * 1000:8.2f} "
                f"{statistics.median(ratios):7.3f} {min(ratios):7.3f} {max(ratios):7.3f} {end:7.1f}"
            )


def build(folder: Path) -> None:
    """A dataset of bytes, as `folder`/data."""
    (folder / "texts").mkdir()
    for number in range(8):
        (folder / "texts" / f"{number}.txt").write_text(f"Document {number} tells of nothing at all. " * 3000)
    command = [
        sys.executable,
        "-m",
        "launch.cli",
        "data",
        "build",
        str(folder / "texts"),
        "--out",
        str(folder / "data"),
    ]
    subprocess.run([*command, "--tokenizer", "bytes", "--workers", "0"], check=True, capture_output=True)


def measure(run: Path, uri: str | None, steps: int, alternating: bool) -> dict[str, float]:
    """Seconds of a step, and from the last one to the end of `brt train`; alternating: also of steps without syncer."""
    config = run.with_suffix(".yaml")
    enabled = "false" if uri is None else "true"
    text = CONFIG.format(data=run.parent / "data", run=json.dumps(str(run)), steps=steps, enabled=enabled, uri=uri)
    config.write_text(text)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NO_PROXY": "127.0.0.1"}
    command = [sys.executable, "-m", "launch.cli", "train", str(config)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    pauses = pauses_of_the_syncer(process, run, steps) if alternating else []
    if process.wait():
        raise SystemExit(f"brt train ended with {process.returncode}")
    ended = time.time()
    events = events_of(run, StepEvent)
    counted = events[len(events) // 5 :]
    without = [event for event in counted if any(_within(event, pause) for pause in pauses)]
    clear = [event for event in counted if not any(_touches(event, pause) for pause in pauses)]
    found = {**_times(clear), "end": ended - events[-1].time}
    return found | ({f"{name} without": value for name, value in _times(without).items()} if alternating else {})


def pauses_of_the_syncer(train: "subprocess.Popen[bytes]", run: Path, steps: int) -> list[tuple[float, float]]:
    """Stop the syncer of a run and let it go on, in turns; from when to when it was stopped, as event times."""
    pauses: list[tuple[float, float]] = []
    while train.poll() is None:
        time.sleep(PAUSE_SECONDS)
        found = [one for one in psutil.Process(train.pid).children() if "launch.tracking.syncer" in one.cmdline()]
        trained = [event.step for event in events_of(run, StepEvent)] if found else []
        if not trained or trained[-1] >= steps - 1:
            continue
        found[0].suspend()
        begin = time.time()
        time.sleep(PAUSE_SECONDS)
        pauses.append((begin, time.time()))
        found[0].resume()
    return pauses


def _within(event: StepEvent, pause: tuple[float, float]) -> bool:
    return pause[0] < event.time - _seconds(event) and event.time < pause[1]


def _touches(event: StepEvent, pause: tuple[float, float]) -> bool:
    return pause[0] < event.time and event.time - _seconds(event) < pause[1]


def _seconds(event: StepEvent) -> float:
    return event.step_seconds or 0.0


def _times(events: list[StepEvent]) -> dict[str, float]:
    seconds = [_seconds(event) for event in events]
    return {"median": statistics.median(seconds), "mean": statistics.fmean(seconds)}


@contextmanager
def silent_server() -> Iterator[str]:
    """Accepts (the kernel does) and never answers."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(1024)
        yield f"http://127.0.0.1:{silent.getsockname()[1]}"


if __name__ == "__main__":
    main()
