"""The curves of a report, from the events of a run."""

import math
from collections.abc import Callable
from functools import partial

from markupsafe import Markup

from brt_dist.events import EvaluationEvent, MemoryEvent, StepEvent
from brt_dist.kinds import MIXERS
from launch.report.charts import Below, Curve, chart, short
from launch.report.collect import RunFacts
from launch.run.history import History
from launch.views.smoothing import RAW_ALONE, settled, smooth

COLOURS = 8  # of the page
NAMES = {"train": "training text", "validation": "held-out text"}


def charts(run: RunFacts, number: int = 0) -> list[Markup]:
    """All figures that are not empty; `number` is the number of the run on the page."""
    history, lines = run.history, run.restarts
    loss = smoothed("training", points(history, lambda step: step.bits_per_token), 0, run, number)
    gains = []
    for dataset, colour in (("train", 1), ("validation", 3)):
        for memory in ("carried", "cleared"):
            name = f"{NAMES[dataset]}, memory {memory}"
            evaluated = evaluation_points(history, dataset, memory)
            cleared = memory == "cleared"
            loss.append(Curve(name, evaluated, colour + cleared, marks=True, counts=settled(evaluated, run.warmup)))
        gains.append(gain_curve(NAMES[dataset], history, dataset, colour, number))
    mfu = [(step, 100 * share) for step, share in points(history, lambda step: step.mfu)]
    wait = [(step, 100 * share) for step, share in points(history, _wait_share)]
    speed = points(history, lambda step: step.tokens_per_second)
    norm = points(history, lambda step: step.grad_norm)
    draw = partial(chart, run=number, below=Below(last=history.last_step))
    figures = [
        draw("Loss", loss, "bits/token", lines),
        draw("What memory gains: cleared minus carried", gains, "bits/token", lines),
        draw("Gradient norm before clipping", smoothed("norm", norm, 0, run, number), "norm", lines),
        draw("Learning rate", [Curve("rate", points(history, lambda step: step.learning_rate))], "rate", lines),
        draw("Speed", smoothed("all ranks", speed, 2, run, number), "tokens/s", lines),
        draw("Waiting for data", smoothed("rank 0", wait, 1, run, number), "% of the step", lines),
        draw("MFU", smoothed("all ranks", mfu, 4, run, number), "% of the peak", lines),
    ]
    figures += _memory(run, number)
    figures.append(_positions(history))
    return [figure for figure in figures if figure]


def smoothed(name: str, found: list[tuple[float, float]], colour: int, run: RunFacts, number: int) -> list[Curve]:
    """A curve, or a pale one and its mean over it if it has many points."""
    counts = settled(found, run.warmup) if found else []
    if len(found) <= RAW_ALONE:
        return [Curve(name, found, colour, run=number, counts=counts)]
    means = list(zip([x for x, _ in found], smooth([y for _, y in found]), strict=True))
    return [
        Curve(f"{name}, raw", found, colour, faint=True, run=number, counts=counts),
        Curve(f"{name}, smoothed", means, colour, run=number, counts=()),
    ]


def _positions(history: History) -> Markup:
    """Loss by position in the document, from the last evaluation of each dataset with each memory; a log axis."""
    curves, marks = [], dict[float, str]()
    for number, dataset in enumerate(("train", "validation")):
        for memory in ("carried", "cleared"):
            steps = [key[0] for key in history.evaluations if key[1:] == (dataset, memory)]
            bins = []
            for one in history.evaluations[max(steps), dataset, memory].positions if steps else ():
                x = math.log2(one.begin * 2 if one.end is None else one.end)
                bins.append((x, one.loss / math.log(2)))
                marks[x] = short(one.begin)
            name = f"{NAMES[dataset]}, memory {memory}"
            curves.append(Curve(name, bins, 1 + 2 * number + (memory == "cleared"), marks=True))
    below = Below("first token of the range", sorted(marks.items()))
    return chart("Loss by position in the document", curves, "bits/token", below=below)


def _memory(run: RunFacts, number: int) -> list[Markup]:
    """A chart for each statistic that a kind of mixer declares, with a curve for each layer that has it."""
    declared = {
        name: statistic for mixer in MIXERS.values() for name, statistic in (mixer.statistics | mixer.watched).items()
    }
    curves: dict[str, dict[int, dict[int, float]]] = {name: {} for name in declared}
    for event in run.events:
        if not isinstance(event, MemoryEvent | EvaluationEvent):
            continue
        for layer in event.layers:
            for key, by_layer in curves.items():
                if key in layer.values:
                    by_layer.setdefault(layer.layer, {})[event.step] = layer.values[
                        key
                    ]  # a repeated step replaces the earlier one

    def drawn(key: str) -> list[Curve]:
        return [
            Curve(f"layer {layer}", sorted(points.items()), number % COLOURS, marks=len(points) < 40)
            for number, (layer, points) in enumerate(sorted(curves[key].items()))
        ]

    below = Below(last=run.history.last_step)
    return [
        chart(statistic.label, drawn(name), statistic.axis, below=below, run=number)
        for name, statistic in declared.items()
    ]


def points(history: History, value: Callable[[StepEvent], float | None]) -> list[tuple[float, float]]:
    """Steps and values for which `value` is known."""
    found = ((step, value(event)) for step, event in sorted(history.steps.items()))
    return [(step, one) for step, one in found if one is not None]


def evaluation_points(history: History, dataset: str, memory: str) -> list[tuple[float, float]]:
    found = [(key[0], event) for key, event in sorted(history.evaluations.items()) if key[1:] == (dataset, memory)]
    return [(step, event.bits_per_token) for step, event in found if event.bits_per_token is not None]


def gain_points(history: History, dataset: str) -> list[tuple[float, float]]:
    """Bits per token lost by clearing memory, at the steps that have both evaluations."""
    carried = dict(evaluation_points(history, dataset, "carried"))
    return [(x, y - carried[x]) for x, y in evaluation_points(history, dataset, "cleared") if x in carried]


def gain_curve(name: str, history: History, dataset: str, colour: int, run: int) -> Curve:
    """The curve of what memory gains, in a figure that shows zero."""
    found = gain_points(history, dataset)
    return Curve(name, found, colour, marks=True, run=run, counts=[*found, (0.0, 0.0)])


def _wait_share(step: StepEvent) -> float | None:
    if not step.step_seconds or step.data_wait_seconds is None:
        return None
    return step.data_wait_seconds / step.step_seconds
