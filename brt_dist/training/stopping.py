"""Whether to stop: a rank is asked by a signal, and all ranks stop at the same place."""

import signal
from types import FrameType

from brt_dist.parallel.device import Device
from brt_dist.parallel.layout import agree


class Stopped(Exception):
    """All ranks abandon an evaluation or a sample, because one was asked to stop."""


class StopFlag:
    """Set by SIGTERM: the rank finishes what it does, and all ranks stop after the same step.

    Attributes:
        asked: this rank was asked to stop.
        agreed: all ranks know that one of them was.
    """

    def __init__(self) -> None:
        self.asked = False
        self.agreed = False

    def listen(self) -> None:
        """Install the handler of SIGTERM (main thread only)."""
        signal.signal(signal.SIGTERM, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.asked = True


def agree_to_stop(stop: StopFlag, device: Device) -> bool:
    """Whether any rank was asked to stop; all get the same answer.  For work outside of steps.  Collective."""
    stop.agreed = stop.agreed or agree((stop.asked,), device)[0] > 0
    return stop.agreed


def leave_if_asked(stop: StopFlag, device: Device) -> None:
    """Called between parts of long work that may be skipped.  Collective.

    Raises:
        Stopped: on all ranks, if any of them was asked to stop.
    """
    if agree_to_stop(stop, device):
        raise Stopped
