"""Which settings may change on resume, and which would silently make it a different run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from brt_dist.config.older import respelled_key
from brt_dist.kinds import FFNS, MIXERS

# No result depends on these: every layout gives the same losses, and the rest only affects how the run is executed and
# monitored.  Guards only stop a run or skip updates, and report it.
# model.attention_kernel: only rounding depends on it.
# run.steps: to train longer (a cosine schedule then ends later).
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
    "model.attention_kernel",
    "parallel.",
    "launch.",
    "data.validation",
    "data.cache",
    "data.verify",
)
# With other values the saved tensors would not fit, or would mean something else.
NEVER = {
    "model.": "the weights of the run belong to this model",
    "optimizer.name": "the saved state belongs to the other optimizer",
}
# Shapes stay the same, so a user may want to change these.  Mixers and FFNs declare such keys themselves.
_ALLOWABLE_IN_MODEL = ("model.dropout", "model.logit_scale")


@dataclass(frozen=True)
class Change:
    """A setting that differs.

    Attributes:
        key: dotted name of the setting.
        before: its value in the run so far.
        now: its new value.
        reason: why it can never change; None if `run.allow` can allow it.
    """

    key: str
    before: Any
    now: Any
    reason: str | None

    def __str__(self) -> str:
        end = f"; cannot change: {self.reason}" if self.reason else ""
        return f"{self.key}: {self.before!r} in the run, {self.now!r} now{end}"


def changes(before: Mapping[str, Any], now: Mapping[str, Any], allowed: Sequence[str] = ()) -> list[Change]:
    """The differences between two flat configs that would make it a different run.

    Args:
        before: the run's config so far, `section.key` to value.
        now: the new config, in the same form.
        allowed: keys that may change, or prefixes of keys up to a dot; those in `NEVER` are still refused.
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
    """Keys of a flat config that its mixers and FFNs list in `declaration` (`changeable` or `beside_weights`)."""
    found = set()
    for section, kinds in (("model.mixers.", MIXERS), ("model.ffns.", FFNS)):
        for key, kind in config.items():
            if key.startswith(section) and key.endswith(".kind"):
                place = key.removesuffix("kind")
                found |= {place + name for name in getattr(kinds[kind], declaration)}
    return found


def _never(key: str) -> str | None:
    return next((reason for beginning, reason in NEVER.items() if key.startswith(beginning)), None)
