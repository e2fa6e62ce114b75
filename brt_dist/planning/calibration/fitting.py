"""Fits what a device's step takes beside products and attention to steps that were trained on it.  No torch here.

Two steps of one model, with many and with few tokens in a micro-batch, tell apart what grows with tokens (activations)
and what every micro-batch costs (sums of gradients).  What is known is taken away by the plan itself, so whatever the
plan counts of a step is counted once.
"""

import json
from collections.abc import Sequence
from typing import NamedTuple

from brt_dist.config.loading import load
from brt_dist.config.schema import Config
from brt_dist.planning.devices import DeviceSpec
from brt_dist.planning.layout_plan import Planner
from brt_dist.planning.step_time import StepTime

MICRO_BATCHES = 3  # of a step
_LEAST_PASSES = 0.1


class StepShape(NamedTuple):
    """A step: streams of a micro-batch, and tokens of their segments."""

    micro_batch: int
    segment: int


class MeasuredStep(NamedTuple):
    """Seconds of a step without communication: of all its forwards and backwards, and of its update."""

    shape: StepShape
    compute: float
    update: float


SHAPES = {"cpu": (StepShape(2, 512), StepShape(1, 256)), "cuda": (StepShape(8, 4096), StepShape(1, 1024))}
_MODELS = {
    "cpu": {"layers": 2, "width": 512, "heads": 8, "head_dim": 64, "window": 128, "vocab_size": 4096},
    "cuda": {"layers": 4, "width": 1024, "heads": 8, "head_dim": 128, "window": 512, "vocab_size": 32768},
}
_PRECISION = {"cpu": "fp32", "cuda": "bf16"}


def step_config(kind: str, ranks: int, shape: StepShape) -> Config:
    """Of a step on so many data parallel ranks: window attention, as the simplest."""
    model = _MODELS[kind]
    values = {
        "model": {**model, "dropout": 0.0, "mixers": {"window": {}}, "ffns": {"relu": {"width": 4 * model["width"]}}},
        "data": {"dataset": "none", "segment": shape.segment, "streams": ranks * MICRO_BATCHES * shape.micro_batch},
        "parallel": {"data": ranks, "micro_batch": shape.micro_batch},
        "run": {"directory": "none", "steps": 1000, "device": kind, "precision": _PRECISION[kind]},
    }
    return load(json.dumps(values), []).config


def fitted(device: DeviceSpec, kind: str, ranks: int, steps: Sequence[MeasuredStep]) -> DeviceSpec:
    """The device with passes over activations, gradients and what an update touches as these steps had them.

    Args:
        device: with everything else measured.
        kind: "cpu" or "cuda".
        ranks: that trained the steps.
        steps: with many tokens in a micro-batch, and with few.
    """
    few = steps[-1]
    nothing = device.model_copy(update={"activation_passes": 0.0, "gradient_passes": 0.0, "update_passes": 1.0})

    def planned(step: MeasuredStep, **changes: float) -> StepTime:
        config = step_config(kind, ranks, step.shape)
        return Planner(config, nothing.model_copy(update=changes)).plan(config.parallel).time

    def compute(step: MeasuredStep, **changes: float) -> float:
        time = planned(step, **changes)
        return time.compute + time.launches * (not device.is_asynchronous)

    left = [step.compute - compute(step) for step in steps]
    pass_of_activations, pass_of_gradients = (
        [compute(step, **{name: 1.0}) - compute(step) for step in steps]
        for name in ("activation_passes", "gradient_passes")
    )
    activations, gradients = _solved(pass_of_activations, pass_of_gradients, left)
    once = planned(few).update
    update = 1.0 + (few.update - once) / (planned(few, update_passes=2.0).update - once)
    return device.model_copy(
        update={
            "activation_passes": activations,
            "gradient_passes": gradients,
            "update_passes": max(update, _LEAST_PASSES),
        }
    )


def _solved(a: Sequence[float], b: Sequence[float], sums: Sequence[float]) -> tuple[float, float]:
    """x and y of a[i] x + b[i] y = sums[i]; one that would be below 0 is 0, and the first equation gives the other."""
    determinant = a[0] * b[1] - a[1] * b[0]
    x = (sums[0] * b[1] - sums[1] * b[0]) / determinant
    y = (a[0] * sums[1] - a[1] * sums[0]) / determinant
    if y < 0:
        return max(sums[0] / a[0], 0.0), 0.0
    if x < 0:
        return 0.0, max(sums[0] / b[0], 0.0)
    return x, y
