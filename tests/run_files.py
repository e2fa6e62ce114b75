"""The files of a run, as a run leaves them."""

import json
from pathlib import Path
from typing import Any

CONFIG = """\
data: {{dataset: {data}}}
run: {{name: "{name}", directory: {run}, steps: 40, tracking: {{uri: "http://me:hunter2@host"}}}}
"""


def write_run(folder: Path, name: str = "tiny", ended: bool = True) -> Path:
    """Two attempts: the first is killed at step 14, the second continues from 10."""
    run = folder / "run"
    run.mkdir()
    (run / "config.yaml").write_text(CONFIG.format(data=folder, run=run, name=name))
    (run / "provenance.json").write_text(json.dumps({"run.steps": "my.yaml:2"}))
    events: list[dict[str, Any]] = []
    for attempt, start, end in ((1, 0, 14), (2, 10, 40)):
        layout = {"tensor": 2, "pipeline": 1, "data": 2}
        fullest = {"parameters": 500, "weights": 2_000_000, "optimizer": 6_000_000, "carried": 700_000}
        plan = {"parameters": 1234, "tokens_per_step": 64, "flops_per_step": 1.5e9, "fullest_rank": fullest}
        begun = {"layout": layout, "start_step": start, "device": "cpu", "plan": plan}
        events.append({"event": "attempt", "time": 100.0 * attempt, **begun})
        events.append({"event": "held", "time": 100.0 * attempt, **fullest, "optimizer": 6_100_000, "parameters": 499})
        for step in range(start + 1, end + 1):
            common = {"tokens": step * 64, "tokens_per_second": 500.0, "step_seconds": 0.1, "data_wait_seconds": 0.02}
            bits = 8.0 - step / 10
            numbers = {"loss": bits * 0.69, "bits_per_token": bits, "grad_norm": 1.0, "learning_rate": 1e-3}
            events.append({"event": "step", "time": 100.0 * attempt + step, "step": step, **numbers, **common})
        for event in events:
            event.setdefault("attempt", attempt)
    at = {"time": 250.0, "attempt": 2}
    for memory, bits in (("carried", 4.25), ("cleared", 4.5)):
        what = {"dataset": "validation", "memory": memory, "bits_per_token": bits, "loss": 3.0, "tokens": 1000}
        bins = [(0, 64, 3.5), (64, 128, 3.0), (256, None, bits * 0.5)]  # no document ends in between
        what["positions"] = [{"from": a, "to": b, "loss": loss, "tokens": 9} for a, b, loss in bins]
        events.append({"event": "evaluation", "step": 40, **what, **at})
    place = {"path": "checkpoints/step_00000040", "seconds": 0.5, "stall_seconds": 0.01, "bytes": 2_000_000}
    events.append({"event": "checkpoint", "step": 40, **place, **at})
    for step in (10, 20):
        layers = [{"layer": 3, "state_rms": 0.5 * step, "state_max": 9.0, "kept": 0.25}]
        events.append({"event": "memory", "step": step, "layers": layers, **at})
    straggler = {"rank": 1, "host": "slow<host>", "seconds": 2.0, "median_seconds": 1.0}
    events.append({"event": "straggler", "step": 20, **straggler, **at})
    (run / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    retry, stop = {"action": "retry", "why": "2 more"}, {"action": "stop", "why": "done"}
    verdicts = (
        {"verdict": "lost_node", "reason": "rank 1 was killed", "decision": retry},
        {"verdict": "finished", "reason": "finished", "decision": stop},
    )
    for number, verdict in enumerate(verdicts, 1):
        attempt_folder = run / "attempts" / f"{number:03d}"
        attempt_folder.mkdir(parents=True)
        record = {"attempt": number, "start": 100.0 * number, "nodes": ["here"]}
        if number == 1 or ended:
            record |= {"end": 100.0 * number + 60, **verdict}
        (attempt_folder / "attempt.json").write_text(json.dumps(record))
    return run
