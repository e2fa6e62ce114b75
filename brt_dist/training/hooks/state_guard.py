"""Warns of a model that ignores its state: the known failure of Block-Recurrent Transformers (docs/state.md)."""

import math
from collections.abc import Mapping

from brt_dist.config.guards import GuardsConfig
from brt_dist.config.schema import ModelConfig
from brt_dist.evaluation.evaluate import EvaluationResult
from brt_dist.evaluation.forgetting import MemoryUse, parts_of
from brt_dist.events import IgnoredStateEvent, MessageEvent
from brt_dist.training.hooks.base import Tell

_PATIENCE = 3  # evaluations in a row, because a state is worth little when training begins


def worth_of_state(model: ModelConfig, found: Mapping[MemoryUse, EvaluationResult]) -> float | None:
    """What carrying the state is worth, in bits per token to which memory was carried.

    Args:
        model: the network.
        found: results of evaluations of the same text.

    Returns:
        None if it cannot be determined: there is no state, no document is longer than a segment, or the evaluation is
        missing.
    """
    parts, carried = parts_of(model), found["carried"]
    cleared = found.get("state cleared" if len(parts) > 1 else "cleared")
    if "state" not in parts or cleared is None or not carried.carried_tokens:
        return None
    return (cleared.loss - carried.loss) * carried.tokens / carried.carried_tokens / math.log(2)


class StateGuard:
    """Checks what the state is worth.  Keeps the number of evaluations in a row in which it was worth nothing.

    Args:
        config: `run.guards`.
        tell: writes an event.
    """

    def __init__(self, config: GuardsConfig, tell: Tell) -> None:
        self._least, self._tell = config.state_bits, tell
        self._ignored = 0

    def check(self, step: int, is_last: bool, dataset: str, bits: float | None) -> None:
        """Check an evaluation; after the last step of the run, one is enough for a warning."""
        if not self._least or bits is None:
            return
        self._ignored = self._ignored + 1 if bits < self._least else 0
        if self._ignored < _PATIENCE and not (self._ignored and is_last):
            return
        self._ignored = 0
        self._tell(IgnoredStateEvent(step=step, dataset=dataset, bits=bits, least=self._least))
        worth = f"carrying it over segments is worth {bits:.4f} bits/token on the {dataset} text"
        self._tell(
            MessageEvent(
                message=f"warning: step {step}: the model ignores its state: {worth}, less than "
                f"run.guards.state_bits={self._least:g}; docs/state.md says what to do"
            )
        )
