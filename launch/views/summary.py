"""The summary that `brt train` and `brt status` print."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from brt_dist.events import EvaluationEvent, from_json
from launch.views.tables import when
from pipelines.tables import table, text_of

if TYPE_CHECKING:
    from rich.table import Table

_PARTS = 4  # of a start that are shown
_WORDS = {
    "preempted": "stopped",
    "interrupted": "stopped",
    "lost_node": "lost a rank or a node",
    "internal": "failed",
    "environment": "failed",
}


def summary(outcome: Mapping[str, Any]) -> str:
    """The summary as text, from `Outcome.to_json()` or `brt status --json`."""
    lines = []
    if outcome.get("detail"):
        lines += [f"--- error of rank {outcome['failed_rank']}", *str(outcome["detail"]).splitlines(), "---"]
    lines.append(
        f"{verdict_words(outcome['verdict'])}: {outcome['reason']}"
        if outcome["reason"] != outcome["verdict"]
        else "finished"
    )
    events = map(from_json, outcome["evaluations"])
    evaluations = [event for event in events if isinstance(event, EvaluationEvent) and event.step == outcome["step"]]
    if evaluations:
        lines.append(text_of(evaluation_table(evaluations, outcome["step"])))
    rows = [("run directory", outcome["run"]), ("step", outcome["step"])]
    if outcome.get("phase"):
        rows.append(("phase", outcome["phase"]))
    if outcome.get("start"):
        rows.append(("start", _start(outcome["start"])))
    rows += [
        (name, outcome[key]) for name, key in (("checkpoint", "checkpoint"), ("loss curve", "plot")) if outcome[key]
    ]
    submission = outcome.get("submission")
    if submission:
        rows.insert(0, ("submission", f"{submission['backend']} job {submission['job']}, {submission['state']}"))
    if outcome["mlflow"]:
        rows.append(("MLflow", outcome["mlflow"]))
        if (page := outcome.get("mlflow_page")) and page not in outcome["mlflow"]:
            rows.append(("its page", page))
    tracking = outcome.get("tracking")
    if tracking and tracking["problem"]:
        rows.append(("not sent", f"since {when(tracking['since'])}: {tracking['problem']}"))
    lines.append(text_of(table(("", ""), [(name, str(value)) for name, value in rows])))
    return "\n".join(lines)


def _start(seconds: Mapping[str, float]) -> str:
    """How long the start of the last attempt took, and its longest parts."""
    longest = sorted(seconds, key=lambda part: -seconds[part])[:_PARTS]
    return f"{sum(seconds.values()):.1f} s: " + ", ".join(f"{part} {seconds[part]:.1f}" for part in longest)


def verdict_words(verdict: str) -> str:
    """A verdict in plain words; it is the name of an exit code."""
    return _WORDS.get(verdict, verdict.replace("_", " "))


def evaluation_table(evaluations: Sequence[EvaluationEvent], step: int) -> "Table":
    """bits/token of each dataset with memory carried and cleared."""
    found = {(event.dataset, event.memory): event.bits_per_token for event in evaluations}
    memories = ("carried", "cleared")
    rows = []
    for dataset in dict.fromkeys(name for name, _ in found):
        cells = [found.get((dataset, memory)) for memory in memories]
        name = {"train": "training", "validation": "held out"}.get(dataset, dataset)
        rows.append((name, *("-" if cell is None else f"{cell:.3f}" for cell in cells)))
    head = [f"memory {memory}" for memory in memories]
    return table((f"bits/token at step {step}", *head), rows, right=head)
