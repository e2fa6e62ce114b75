"""What the ranks agree on after a step: whether it was taken by all, and whether to stop."""

import signal
from types import FrameType

from brt_dist.errors import DivergedError
from brt_dist.parallel.device import Device
from brt_dist.parallel.engine import StepResult
from brt_dist.parallel.layout import agree


class StopRequest:
    """SIGTERM as a wish: the rank finishes its step, and all ranks stop after the same one."""

    def __init__(self) -> None:
        self.asked = False

    def listen(self) -> None:
        """Take over SIGTERM (main thread only)."""
        signal.signal(signal.SIGTERM, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.asked = True


def agree_to_stop(stop: StopRequest, device: Device) -> bool:
    """Whether any rank was asked to stop, so that all stop here.  Collective."""
    return agree((stop.asked,), device)[0] > 0


def agree_on_step(result: StepResult, step: int, stop: StopRequest, device: Device) -> bool:
    """As `agree_to_stop`, after a step that was trained.  Collective.

    Raises:
        DivergedError: some ranks took the update and others left it out, so their weights differ from now on.
    """
    asked, taken, left_out = agree((stop.asked, result.is_updated, not result.is_updated), device)
    if taken and left_out:
        raise DivergedError(
            f"step {step}: some ranks took an update that others left out. The last checkpoint is good.",
            step,
        )
    return asked > 0
