"""The latest metrics of runs for Prometheus, from their event files alone: `brt metrics-exporter RUN ...`."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from prometheus_client import CollectorRegistry, Metric, start_http_server
from prometheus_client.registry import Collector

from brt_dist.errors import PlatformError
from brt_dist.event_log import EventReader
from brt_dist.events import StepEvent
from launch.run.history import History

# metric: (its value, help)
_STEP: dict[str, tuple[Callable[[StepEvent], float | None], str]] = {
    "brt_loss_nats": (lambda step: step.loss, "mean loss of the last step, in nats per token"),
    "brt_gradient_norm": (lambda step: step.grad_norm, "global gradient norm before clipping"),
    "brt_learning_rate": (lambda step: step.learning_rate, "learning rate of the last step"),
    "brt_tokens_total": (lambda step: step.tokens, "tokens with a target trained on so far"),
    "brt_tokens_per_second": (lambda step: step.tokens_per_second, "tokens with a target per second"),
    "brt_step_seconds": (lambda step: step.step_seconds, "duration of the last step"),
    "brt_data_wait_seconds": (lambda step: step.data_wait_seconds, "time of the last step spent waiting for data"),
}


_OTHER = {
    "brt_step": "last step that was done",
    "brt_attempt": "number of the attempt",
    "brt_checkpoint_step": "step of the last checkpoint",
    "brt_event_age_seconds": "time since the last step was written",
    "brt_ended": "1 when the attempt has ended",
}
_HELP = {metric: text for metric, (_, text) in _STEP.items()} | _OTHER


class Runs(Collector):
    """Collects the metrics of `runs`; each collection reads the new events."""

    def __init__(self, runs: Sequence[Path]) -> None:
        self._followed = [(run, EventReader(run), History()) for run in runs]
        self._lock = threading.Lock()  # the server answers each request in a thread of its own

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        with self._lock:
            for run, reader, history in self._followed:
                history.add(reader.read())
                for metric, value in _values(history):
                    if metric not in families:
                        kind = "counter" if metric.endswith("_total") else "gauge"
                        families[metric] = Metric(metric.removesuffix("_total"), _HELP[metric], kind)
                    families[metric].add_sample(metric, {"run": str(run)}, value)
        yield from families.values()


@contextmanager
def serving(runs: Sequence[Path], address: str, port: int) -> Iterator[tuple[int, threading.Thread]]:
    """A server of the metrics in a thread; gives the port that it listens on (0 asks for any) and the thread.

    Raises:
        PlatformError: the address or port is not available.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Runs(runs))
    try:
        server, thread = start_http_server(port, address, registry)
    except OSError as error:
        raise PlatformError(f"cannot listen on {address}:{port}: {error.strerror}; try another --port") from None
    try:
        yield server.server_port, thread
    finally:
        server.shutdown()
        server.server_close()


def _values(history: History) -> Iterator[tuple[str, float]]:
    last = history.latest_step()
    if history.attempt is not None:
        yield "brt_attempt", history.attempt.attempt or 0
        yield "brt_ended", int(history.end is not None)
    if history.checkpoints:
        yield "brt_checkpoint_step", max(history.checkpoints)
    if last is not None:
        yield "brt_step", last.step
        yield "brt_event_age_seconds", round(time.time() - last.time, 3)
        for metric, (value_of, _) in _STEP.items():
            if (value := value_of(last)) is not None:
                yield metric, value
