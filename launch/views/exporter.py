"""The last numbers of runs for Prometheus, from their event files alone: `brt metrics-exporter RUN ...`."""

import time
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from brt_dist.errors import PlatformError
from brt_dist.events import EventReader, StepEvent
from launch.run.history import History

# metric: (its value, help)
_STEP: dict[str, tuple[Callable[[StepEvent], float | None], str]] = {
    "brt_loss_nats": (lambda step: step.loss, "mean loss of the last step, in nats a token"),
    "brt_gradient_norm": (lambda step: step.grad_norm, "global gradient norm before clipping"),
    "brt_learning_rate": (lambda step: step.learning_rate, "learning rate of the last step"),
    "brt_tokens_total": (lambda step: step.tokens, "tokens with a target that were trained on"),
    "brt_tokens_per_second": (lambda step: step.tokens_per_second, "tokens with a target in a second"),
    "brt_step_seconds": (lambda step: step.step_seconds, "duration of the last step"),
    "brt_data_wait_seconds": (lambda step: step.data_wait_seconds, "of which waiting for data"),
}


class Runs:
    """Follows the events of `runs`; every call of `text` reads what is new."""

    def __init__(self, runs: Sequence[Path]) -> None:
        self._followed = [(run, EventReader(run), History()) for run in runs]

    def text(self) -> str:
        """All metrics in Prometheus' text format."""
        rows: dict[str, list[str]] = {}
        for run, reader, history in self._followed:
            history.add(reader.read())
            for metric, value in _values(history):
                rows.setdefault(metric, []).append(f'{metric}{{run="{_escaped(str(run))}"}} {value}')
        helps = {metric: text for metric, (_, text) in _STEP.items()} | _OTHER
        return "".join(
            f"# HELP {metric} {helps[metric]}\n# TYPE {metric} {_kind(metric)}\n" + "\n".join(lines) + "\n"
            for metric, lines in rows.items()
        )


_OTHER = {
    "brt_step": "last step that was done",
    "brt_attempt": "number of the attempt",
    "brt_checkpoint_step": "step of the last checkpoint",
    "brt_event_age_seconds": "time since the last step was written",
    "brt_ended": "1 when the attempt has ended",
}


def serve(runs: Sequence[Path], address: str, port: int) -> ThreadingHTTPServer:
    """A server that is bound and not yet serving.  PlatformError: the address or port cannot be had."""
    followed = Runs(runs)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = followed.text().encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: Any) -> None:
            """Nothing: it is asked every few seconds."""

    try:
        return ThreadingHTTPServer((address, port), Handler)
    except OSError as error:
        raise PlatformError(f"cannot listen on {address}:{port}: {error.strerror}; try another --port") from None


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


def _kind(metric: str) -> str:
    return "counter" if metric.endswith("_total") else "gauge"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
