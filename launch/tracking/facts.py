"""What is tracked besides curves: tags, and the tables of attempts and checkpoints."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from brt_dist.errors import PlatformError
from brt_dist.events import AttemptEvent, CheckpointEvent, Event, LayoutSizes, plan_json
from launch.run.attempt_record import AttemptRecord, read_attempts, read_last_attempt
from launch.run.submission import Submission
from launch.views.progress import layout_text

_TABLES = ("attempts.json", "checkpoints.json")


def tags(run: Path) -> dict[str, str]:
    """Host of the launcher, hosts of the ranks, commit, backend and verdict of the last attempt."""
    record = read_last_attempt(run)
    shown = [{"path": name, "type": "table"} for name in _TABLES]  # MLflow's UI then shows them as tables
    found = {"brt.run_directory": str(run.absolute()), "mlflow.loggedArtifacts": json.dumps(shown), **_submission(run)}
    if record is None:
        return found
    named = {
        "host": record.host,
        "git_commit": record.git_commit,
        "mlflow.source.git.commit": record.git_commit,
        "verdict": record.verdict,
        "reason": record.reason,
        "hosts": ", ".join(record.nodes),
    }
    return found | {name: value for name, value in named.items() if value}


def files(run: Path, events: Sequence[Event]) -> dict[str, str]:
    """attempts.json and checkpoints.json, in the form that MLflow's UI shows as tables, and plan.json.

    Args:
        run: the run directory.
        events: at least those of attempts and checkpoints; the latest event of a step counts.
    """
    begun = [event for event in events if isinstance(event, AttemptEvent)]
    starts = {event.attempt: event.start_step for event in begun}
    saved = {event.step: event for event in events if isinstance(event, CheckpointEvent)}
    found = {
        "attempts.json": _table(
            [_attempt_row(record, starts) for record in read_attempts(run)],
            ["attempt", "from_step", "start", "end", "hosts", "layout", "git_commit", "verdict", "reason", "then"],
        ),
        "checkpoints.json": _table(
            [vars(saved[step]) for step in sorted(saved)],
            ["step", "path", "bytes", "seconds", "stall_seconds", "time", "attempt"],
        ),
    }
    if plans := [event.plan for event in begun if event.plan is not None]:
        found["plan.json"] = json.dumps(plan_json(plans[-1]), indent=2) + "\n"
    return found


def _attempt_row(record: AttemptRecord, starts: Mapping[Any, Any]) -> dict[str, Any]:
    decision = record.decision
    return {
        **record.to_json(),
        "from_step": starts.get(record.attempt),
        "layout": layout_text(LayoutSizes(**record.layout)),
        "hosts": ", ".join(record.nodes),
        "then": f"{decision['action']}: {decision['why']}" if decision else None,
    }


def _submission(run: Path) -> dict[str, str]:
    try:
        record = Submission.read(run)
    except PlatformError:
        record = None
    return {"backend": record.backend, "job": record.job} if record else {"backend": "none (brt train)"}


def _table(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    return json.dumps({"columns": names, "data": [[row.get(name) for name in names] for row in rows]}) + "\n"
