"""What the ranks agree on after a step: whether all of them applied the update, and whether to stop."""

import signal
from types import FrameType

from brt_dist.errors import DivergedError
from brt_dist.parallel.device import Device
from brt_dist.parallel.engine import StepResult
from brt_dist.parallel.layout import agree


class StopFlag:
    """Set by SIGTERM: the rank finishes its step, and all ranks stop after the same one."""

    def __init__(self) -> None:
        self.asked = False

    def listen(self) -> None:
        """Install the handler of SIGTERM (main thread only)."""
        signal.signal(signal.SIGTERM, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.asked = True


def agree_to_stop(stop: StopFlag, device: Device) -> bool:
    """Whether any rank was asked to stop; all ranks get the same answer.  Collective."""
    return agree((stop.asked,), device)[0] > 0


def agree_on_step(result: StepResult, step: int, stop: StopFlag, device: Device) -> bool:
    """Like `agree_to_stop`, after a trained step.  Collective.

    Raises:
        DivergedError: some ranks applied the update and others skipped it, so their weights differ from now on.
    """
    asked, taken, left_out = agree((stop.asked, result.is_updated, not result.is_updated), device)
    if taken and left_out:
        raise DivergedError(
            f"step {step}: some ranks applied an update that others skipped. The last checkpoint is good.",
            step,
        )
    return asked > 0
