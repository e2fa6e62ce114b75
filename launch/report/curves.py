"""The curves of a report: which there are, from the events of a run."""

import math
from collections.abc import Iterable

from launch.report.charts import Below, Curve, chart, short
from launch.report.collect import RunFacts
from launch.run.events import Event, History

COLOURS = 8  # that the page has
NAMES = {"train": "training text", "validation": "held-out text"}


def charts(run: RunFacts) -> str:
    history, lines = run.history, run.restarts
    loss = [Curve("training", points(history, "bits_per_token"), 0)]
    for number, dataset in enumerate(("train", "validation")):
        for memory in ("carried", "cleared"):
            colour = 1 + 2 * number + (memory == "cleared")
            name = f"{NAMES[dataset]}, memory {memory}"
            loss.append(Curve(name, evaluation_points(history, dataset, memory), colour, marks=True))
    mfu = [(step, 100 * share) for step, share in points(history, "mfu")]
    wait = [(step, 100 * share) for step, share in _wait_shares(history)]
    figures = [
        chart("Loss", loss, "bits/token", lines),
        chart("Gradient norm before clipping", [Curve("norm", points(history, "grad_norm"))], "norm", lines),
        chart("Learning rate", [Curve("rate", points(history, "learning_rate"))], "rate", lines),
        chart("Speed", [Curve("all ranks", points(history, "tokens_per_second"), 2)], "tokens/s", lines),
        chart("Waiting for data", [Curve("rank 0", wait, 1)], "% of the step", lines),
        chart("MFU", [Curve("all ranks", mfu, 4)], "% of the peak", lines),
    ]
    figures += _memory(run)
    figures.append(_positions(history))
    found = "".join(figures)
    return f'<div class="charts">{found}</div>' if found else '<p class="dim">no step yet</p>'


def _positions(history: History) -> str:
    """Loss by position in the document, of the last evaluation of each text with each memory; the axis doubles."""
    curves, marks = [], dict[float, str]()
    for number, dataset in enumerate(("train", "validation")):
        for memory in ("carried", "cleared"):
            steps = [key[0] for key in history.evaluations if key[1:] == (dataset, memory)]
            event = history.evaluations[max(steps), dataset, memory] if steps else {}
            bins = []
            for one in event.get("positions", ()):
                x = math.log2(one["from"] * 2 if one["to"] is None else one["to"])
                bins.append((x, one["loss"] / math.log(2)))
                marks[x] = short(one["from"])
            name = f"{NAMES[dataset]}, memory {memory}"
            curves.append(Curve(name, bins, 1 + 2 * number + (memory == "cleared"), marks=True))
    below = Below("from this token of the document on", sorted(marks.items()))
    return chart("Loss by position in the document", curves, "bits/token", below=below)


def _memory(run: RunFacts) -> list[str]:
    """Sizes of the states and what the gates keep, a curve for each recurrent layer."""
    curves: dict[str, dict[int, dict[int, float]]] = {"state_rms": {}, "state_max": {}, "kept": {}}
    for event in run.events:
        for layer in event.get("layers", ()) if event["event"] == "memory" else ():
            for key, by_layer in curves.items():
                by_layer.setdefault(layer["layer"], {})[event["step"]] = layer[key]  # what came again replaces

    def drawn(key: str) -> list[Curve]:
        return [
            Curve(f"layer {layer}", sorted(points.items()), number % COLOURS, marks=len(points) < 40)
            for number, (layer, points) in enumerate(sorted(curves[key].items()))
        ]

    return [
        chart("Size of the states", drawn("state_rms"), "root mean square"),
        chart("Largest entry of the states", drawn("state_max"), "size"),
        chart("Share of the state that the gates keep", drawn("kept"), "share"),
    ]


def points(history: History, key: str) -> list[tuple[float, float]]:
    return [
        (step, event[key]) for step, event in sorted(history.steps.items()) if isinstance(event.get(key), int | float)
    ]


def evaluation_points(history: History, dataset: str, memory: str) -> list[tuple[float, float]]:
    found = [(key[0], event) for key, event in sorted(history.evaluations.items()) if key[1:] == (dataset, memory)]
    return [(step, event["bits_per_token"]) for step, event in found if "bits_per_token" in event]


def _wait_shares(history: History) -> list[tuple[int, float]]:
    events: Iterable[tuple[int, Event]] = sorted(history.steps.items())
    return [
        (step, event["data_wait_seconds"] / event["step_seconds"])
        for step, event in events
        if event.get("step_seconds") and "data_wait_seconds" in event
    ]
