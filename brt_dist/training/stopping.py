"""Whether to stop: a rank is asked by a signal, and all ranks stop after the same step."""

import signal
from types import FrameType

from brt_dist.parallel.device import Device
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
    """Whether any rank was asked to stop; all get the same answer.  For a step that is not trained.  Collective."""
    return agree((stop.asked,), device)[0] > 0
