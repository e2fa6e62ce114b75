"""A CPU that DeepSpeed treats as a GPU: it uses streams and events and takes the branches that synchronise."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch


class Event:
    """An event, as in CUDA; waiting for it on the host is a synchronisation."""

    made = 0  # by the block under way of `like_a_gpu`
    waited: Callable[[], None] = staticmethod(lambda: None)

    def __init__(self, **_: Any) -> None:
        type(self).made += 1

    def record(self, stream: Any = None) -> None: ...

    def synchronize(self) -> None:
        self.waited()

    def query(self) -> bool:
        return True

    def wait(self, stream: Any = None) -> None: ...

    def elapsed_time(self, other: "Event") -> float:
        return 0.0


class Stream:
    """A stream, as in CUDA."""

    def __init__(self, **_: Any) -> None: ...

    def wait_stream(self, stream: "Stream") -> None: ...

    def wait_event(self, event: Event) -> None: ...

    def record_event(self, event: Event | None = None) -> Event:
        return event or Event()

    def synchronize(self) -> None:
        Event.waited()


@contextmanager
def like_a_gpu(waited: Callable[[], None]) -> Iterator[type[Event]]:
    """DeepSpeed's CPU accelerator behaves like the one of a GPU in the block.

    Args:
        waited: called when the host waits for an event or a stream.
    """
    from deepspeed.accelerator import get_accelerator

    stream = Stream()
    with pytest.MonkeyPatch.context() as patch:
        kind = type(get_accelerator())
        for name in ("is_synchronized_device", "use_host_timers", "resolves_data_dependency"):
            patch.setattr(kind, name, lambda self: False)
        for name in ("current_stream", "default_stream"):
            patch.setattr(kind, name, lambda self, device_index=None: stream)
        patch.setattr(kind, "stream", lambda self, stream: nullcontext())
        patch.setattr(kind, "Stream", property(lambda self: Stream))
        patch.setattr(kind, "Event", property(lambda self: Event))
        patch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: None)
        patch.setattr(Event, "made", 0)
        patch.setattr(Event, "waited", staticmethod(waited))
        yield Event
