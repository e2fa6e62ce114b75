"""What may stop a run between two steps: numbers that are no longer finite, or a request to end."""

import math
import signal
from types import FrameType

from brt_dist.errors import DivergedError
from brt_dist.parallel.device import Device
from brt_dist.parallel.engine import StepResult
from brt_dist.parallel.layout import agree


def check_finite(result: StepResult, step: int) -> None:
    """Refuse to go on after a step with a loss or gradient that is not finite (all ranks see the same numbers).

    Raises:
        DivergedError: with the step; nothing of it was saved.
    """
    if not (math.isfinite(result.loss) and math.isfinite(result.grad_norm)):
        raise DivergedError(
            f"step {step}: loss {result.loss}, gradient norm {result.grad_norm}. The last checkpoint is untouched; "
            "resume from it with a smaller optimizer.learning_rate or optimizer.clip_norm, or a longer warm-up."
        )


class StopRequest:
    """SIGTERM, as a wish: the rank goes on to the end of its step, and all ranks stop after the same one."""

    def __init__(self) -> None:
        self._asked = False

    def listen(self) -> None:
        """Take over SIGTERM (main thread only)."""
        signal.signal(signal.SIGTERM, self._on_signal)

    def agreed(self, device: Device) -> bool:
        """Whether any rank was asked to stop.  Collective, once a step."""
        return agree(float(self._asked), device) > 0

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
