"""The names of metrics in MLflow: one table, which docs/tracking.md repeats and a test compares.

MLflow's page groups curves by what precedes the last slash, in alphabetical order; `system/` has its own tab.  So what
people look for comes first (bits per token, loss, what memory gains), and plumbing is out of the way.

A run keeps the names that it began with (`SyncState.names`): a curve does not change its name halfway.
"""

import re
from typing import NamedTuple

FIRST, CURRENT = 1, 2  # versions of the names


class _Name(NamedTuple):
    """What is measured, its name now, and its name in runs that began before; None: it was not sent."""

    now: str
    before: str | None


METRICS = {
    "step.loss": _Name("loss/train", "loss"),
    "step.bits_per_token": _Name("bits_per_token/train", "bits_per_token"),
    "step.grad_norm": _Name("optimizer/grad_norm", "grad_norm"),
    "step.learning_rate": _Name("optimizer/learning_rate", "learning_rate"),
    "step.tokens": _Name("progress/tokens", "tokens"),
    "step.tokens_per_second": _Name("speed/tokens_per_second", "tokens_per_second"),
    "step.step_seconds": _Name("speed/step_seconds", "step_seconds"),
    "step.data_wait_seconds": _Name("speed/data_wait_seconds", "data_wait_seconds"),
    "step.mfu": _Name("speed/mfu", "mfu"),
    "step.peak_memory_bytes": _Name("system/rank_0/peak_memory_bytes", "peak_memory_bytes"),
    "step.loss_again": _Name("loss/train_attempt_{attempt}", "attempt_{attempt}/loss"),
    "evaluation.loss": _Name("loss/{data}", "{dataset}/{memory}/loss"),
    "evaluation.bits_per_token": _Name("bits_per_token/{data}", "{dataset}/{memory}/bits_per_token"),
    "evaluation.accuracy": _Name("objective_accuracy/{data}", None),
    "evaluation.legal": _Name("objective_legal/{data}", None),
    "evaluation.legal_words": _Name("objective_legal/{data}_words", None),
    "evaluation.state_accuracy": _Name("objective_accuracy/{data}_state", None),
    "evaluation.stack_accuracy": _Name("objective_accuracy/{data}_stack", None),
    "evaluation.gain": _Name("memory_gain/{data}", None),
    "evaluation.tokens": _Name("system/evaluation/{data}/tokens", "{dataset}/{memory}/tokens"),
    "evaluation.seconds": _Name("system/evaluation/{data}/seconds", "{dataset}/{memory}/seconds"),
    "parts": _Name("system/step/{name}_seconds", None),
    "checkpoint.seconds": _Name("system/checkpoint/seconds", "checkpoint/seconds"),
    "checkpoint.stall_seconds": _Name("system/checkpoint/stall_seconds", "checkpoint/stall_seconds"),
    "checkpoint.bytes": _Name("system/checkpoint/bytes", "checkpoint/bytes"),
    "memory": _Name("system/memory/layer_{layer}/{name}", "memory/layer_{layer}/{name}"),
    "warning": _Name("warnings/{kind}_{name}", "guards/{kind}/{name}"),
    "node": _Name("system/{node}/{name}", "system/{node}/{name}"),
}


def metric(what: str, version: int = CURRENT, **values: object) -> str | None:
    """The name of a metric; None if runs with names of this version do not have it.

    Args:
        what: a key of `METRICS`.
        version: of the names (`FIRST`, `CURRENT`).
        values: of the placeholders in the name.

    Raises:
        KeyError: there is no such metric.
    """
    name = METRICS[what].now if version >= CURRENT else METRICS[what].before
    return None if name is None else name.format(**values)


def evaluated(dataset: str, memory: str) -> str:
    """What an evaluation is called in names: `validation`, `validation_cleared`, `train_documents`, ..."""
    # a path on disk cannot be part of a name unchanged: MLflow refuses names that path resolution would change
    parts = [part for part in dataset.split("/") if part not in ("", ".", "..")]
    place = re.sub(r"[^\w .:/-]", "_", "/".join(parts))
    place = "train_documents" if place == "train" else place  # `train` alone is the loss of the steps
    return place if memory == "carried" else f"{place}_{memory.replace(' ', '_')}"
