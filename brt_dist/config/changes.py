"""What may change when a run goes on, and what would silently make it another run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from brt_dist.config.older import respelled_key
from brt_dist.kinds import FFNS, MIXERS

# No number depends on these: layouts give the same losses, the rest is about how it is run and watched.  Guards only
# end a run or leave updates out, and tell of it.
# run.steps: to go on for longer (a cosine schedule then ends later).
FREE = (
    "run.name",
    "run.directory",
    "run.steps",
    "run.log_every",
    "run.checkpoint",
    "run.keep_",
    "run.evaluat",
    "run.tracking.",
    "run.allow",
    "run.guards.",
    "run.memory_every",
    "run.sample_tokens",
    "run.device",
    "parallel.",
    "launch.",
    "data.validation",
    "data.cache",
)
# The saved tensors would not fit, or would mean something else.
NEVER = {
    "model.": "the weights of the run belong to this model",
    "optimizer.name": "the saved optimizer state belongs to the other one",
}
# The same model on other terms: shapes stay, so it can be wanted.  Mixers and FFNs declare such keys themselves.
_ALLOWABLE_IN_MODEL = ("model.dropout", "model.logit_scale")


@dataclass(frozen=True)
class Change:
    """One setting that differs.  reason: why it can never change, or none when it can be allowed."""

    key: str
    before: Any
    now: Any
    reason: str | None

    def __str__(self) -> str:
        end = f"; cannot change: {self.reason}" if self.reason else ""
        return f"{self.key}: {self.before!r} in the run, {self.now!r} now{end}"


def changes(before: Mapping[str, Any], now: Mapping[str, Any], allowed: Sequence[str] = ()) -> list[Change]:
    """The differences between two flat configs (`section.key` -> value) that make it another run.

    Args:
        allowed: keys (or the beginnings of keys, up to a dot) whose change is wanted; those of `NEVER` stay refused.
    """
    found = []
    allowed = [respelled_key(given) for given in allowed]
    changeable = {*_ALLOWABLE_IN_MODEL, *half_keys(now, "changeable")}
    for key in sorted(before.keys() | now.keys()):
        if key.startswith(FREE) or before.get(key) == now.get(key):
            continue
        reason = None if key in changeable else _never(key)
        if reason is None and any(key == given or key.startswith(f"{given}.") for given in allowed):
            continue
        found.append(Change(key, before.get(key), now.get(key), reason))
    return found


def half_keys(config: Mapping[str, Any], declaration: str) -> set[str]:
    """Keys of a flat config that its mixers and FFNs name in a declaration: `changeable`, or `beside_weights`."""
    found = set()
    for section, kinds in (("model.mixers.", MIXERS), ("model.ffns.", FFNS)):
        for key, kind in config.items():
            if key.startswith(section) and key.endswith(".kind"):
                place = key.removesuffix("kind")
                found |= {place + name for name in getattr(kinds[kind], declaration)}
    return found


def _never(key: str) -> str | None:
    return next((reason for beginning, reason in NEVER.items() if key.startswith(beginning)), None)
