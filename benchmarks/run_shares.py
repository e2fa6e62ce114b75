"""What a step in the loop of `brt train` spends besides forward, backward and update."""

import json
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

GUARDS = ("NumberGuard", "ReplicaGuard", "Stragglers", "Control")
TRACKING = ("StepMetrics", "StepParts", "MemoryStatistics", "HeldMemory", "Heartbeat")
METHODS = ("after_step", "between_steps")  # of hooks; `around_step` of theirs only asks whether to measure


def measure_run(values: dict[str, Any], steps: int) -> dict[str, Any]:
    """Train so many steps in a process of its own, with two saves.

    Returns:
        Seconds of steps and of their waits for data, of events and guards in a step, and for which saves stop training.
    """
    context = get_context("spawn")
    results = context.SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        process = context.Process(target=train, args=(values, steps, folder, results))
        process.start()
        process.join()
        if process.exitcode:
            raise SystemExit("the run failed")
        found: dict[str, Any] = results.get()
    return found


def train(values: dict[str, Any], steps: int, folder: str, results: Any) -> None:
    """The run; its dataset is built first."""
    import torch

    from benchmarks.tracking import build
    from brt_dist.config.loading import dump, load
    from brt_dist.data.open import open_training
    from brt_dist.event_log import EventLog, events_of
    from brt_dist.events import CheckpointEvent, StepEvent
    from brt_dist.files import write_atomic
    from brt_dist.parallel.control import Control
    from brt_dist.parallel.layout import Layout, single_process
    from brt_dist.training.build import build_trainer
    from brt_dist.training.stopping import StopFlag

    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
    torch.set_num_threads(1)
    build(Path(folder))
    run = Path(folder) / "run"
    run.mkdir()
    of_run = {
        **values["run"], "directory": str(run), "steps": steps, "log_every": 1, "checkpoint_every": steps // 2,
        "evaluation_steps": 1, "evaluate_parts": False,
    }  # fmt: skip
    data = {**values["data"], "dataset": str(Path(folder) / "data")}
    config = load(json.dumps({**values, "data": data, "run": of_run}), []).config
    write_atomic(run / "config.yaml", dump(config))
    spent: dict[str, float] = defaultdict(float)
    for method in ("_look", "agree"):  # looked up when an engine is built
        setattr(Control, method, timed(getattr(Control, method), "Control", spent))
    with single_process() as device:
        events, dataset = EventLog(run, 1, enabled=True), open_training(config.data)
        trainer = build_trainer(config, run, Layout.of(config, 0), device, events, dataset, None, StopFlag())
        for hook in trainer.hooks:
            for method in METHODS:
                setattr(hook, method, timed(getattr(hook, method), type(hook).__name__, spent))
        trainer.run()
        trainer.close()
        events.close()
    told = events_of(run, StepEvent)[1:]  # the first allocates memory
    results.put(
        {
            "steps": [event.step_seconds for event in told],
            "data": [event.data_wait_seconds for event in told],
            "stalls": [event.stall_seconds for event in events_of(run, CheckpointEvent)],
            "guards": sum(spent[name] for name in GUARDS) / steps,
            "tracking": sum(spent[name] for name in TRACKING) / steps,
        }
    )


def timed(method: Callable[..., Any], name: str, spent: dict[str, float]) -> Callable[..., Any]:
    """The same, which adds the seconds that it takes to those of `name`."""

    def call(*arguments: Any, **named: Any) -> Any:
        began = time.perf_counter()
        try:
            return method(*arguments, **named)
        finally:
            spent[name] += time.perf_counter() - began

    return call


def table_of_run(found: dict[str, Any], save_every: int) -> str:
    """Shares of a step."""
    step = statistics.median(found["steps"])
    rows = {
        "waiting for data": statistics.fmean(found["data"]),
        "guards": found["guards"],
        "events": found["tracking"],
        f"stall of a save every {save_every} steps": max(found["stalls"]) / save_every,
    }
    lines = ["| of a step | ms | share |", "|---|---|---|"]
    lines += [f"| {name} | {1000 * seconds:.2f} | {seconds / step:.2%} |" for name, seconds in rows.items()]
    return "\n".join(lines)
