"""Detects copies of a weight that are no longer equal on all ranks that hold it."""

from collections.abc import Sequence

from brt_dist.errors import PlatformError
from brt_dist.events import DriftEvent
from brt_dist.parallel.engine import Engine
from brt_dist.parallel.replicas import Drift, Replicas
from brt_dist.training.hooks.base import Hook, Tell, is_due
from brt_dist.training.trainer_state import TrainedStep

_NAMED = 20  # most weights to name: if the ranks hold different models, all of them differ


class ReplicaGuard(Hook):
    """Compares every `run.guards.replica_every` steps.  Collective then; stateless."""

    def __init__(self, engine: Engine, tell: Tell) -> None:
        self._config, self._tell = engine.config.run.guards, tell
        self._replicas = Replicas(engine.layout, engine.held_weights, engine.device)

    def after_step(self, step: TrainedStep) -> None:
        if not is_due(step.number, self._config.replica_every) or not self._replicas.differ():
            return
        found = self._replicas.find()
        if not found:  # a checksum was wrong, the weights are not
            self._tell(DriftEvent(step=step.number))
            return
        for one in found[:_NAMED]:
            self._tell(DriftEvent(step=step.number, weight=one.weight, ranks=one.ranks, others=one.others))
        if self._config.on_drift == "stop":
            raise PlatformError(_message(step.number, found))


def _message(step: int, found: Sequence[Drift]) -> str:
    first, more = found[0], f" ({len(found) - 1} other weights differ too)" if len(found) > 1 else ""
    return (
        f"step {step}: {first.weight} differs between ranks {_listed(first.ranks)} and {_listed(first.others)}{more}. "
        "Either a device computes wrongly, or some ranks sum in another order; `brt doctor` checks the nodes. Resume "
        "from the last checkpoint, which gives all ranks the same copy; run.guards.on_drift=report continues instead."
    )


def _listed(ranks: tuple[int, ...]) -> str:
    shown = ", ".join(map(str, ranks[:8]))
    return f"{shown} and {len(ranks) - 8} more" if len(ranks) > 8 else shown
