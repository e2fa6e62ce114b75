"""Fits the cost of a step besides matrix products and attention to steps that a device trained.  No torch here.

Two steps of one model, with many and with few tokens in a micro-batch, separate what grows with tokens (activations)
from what every micro-batch costs (sums of gradients).  A step with each kind of mixer shows how many times its layers
pass over their activations, and a step of tensor parallel ranks what collectives between products cost.  The plan
itself subtracts the known parts, so whatever the plan counts in a step is counted once.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from brt_dist.config.loading import load
from brt_dist.config.schema import Config
from brt_dist.planning.devices import DeviceSpec
from brt_dist.planning.layout_plan import Planner

MICRO_BATCHES = 3  # of a step
_LEAST_PASSES = 0.1
_MOST_SHARE = 2.0  # of the rate of links alone; anything faster was measured wrongly


class StepShape(NamedTuple):
    """A step: streams of a micro-batch, and tokens of their segments."""

    micro_batch: int
    segment: int


class MeasuredStep(NamedTuple):
    """Seconds of a step: of forwards and backwards, with collectives of tensor parallel ranks, and of the update."""

    shape: StepShape
    compute: float
    update: float


SHAPES = {"cpu": (StepShape(2, 512), StepShape(1, 256)), "cuda": (StepShape(8, 4096), StepShape(1, 1024))}
_MODELS = {
    "cpu": {"layers": 2, "width": 512, "heads": 8, "head_dim": 64, "window": 128, "vocab_size": 4096},
    "cuda": {"layers": 4, "width": 1024, "heads": 8, "head_dim": 128, "window": 512, "vocab_size": 32768},
}
_PRECISION = {"cpu": "fp32", "cuda": "bf16"}
MIXERS: dict[str, dict[str, Any]] = {  # measured beside windows, which the two steps have
    "recurrent": {"states": 128}, "linear": {}, "delta": {}, "gated_delta": {}, "memsizer": {}, "nprf_rpe": {},
    "fourier_memory": {}, "lstm": {}, "bst": {}, "switchhead": {},
}  # fmt: skip


def step_config(kind: str, ranks: int, shape: StepShape, mixer: str = "window", tensor: int = 1) -> Config:
    """Of a step, all of whose layers have one mixer: window attention is the simplest."""
    model, data = _MODELS[kind], ranks // tensor
    mixers = {mixer: {"layers": list(range(int(model["layers"]))), **MIXERS.get(mixer, {})}}
    values = {
        "model": {**model, "dropout": 0.0, "mixers": mixers, "ffns": {"relu": {"width": 4 * model["width"]}}},
        "data": {"dataset": "none", "segment": shape.segment, "streams": data * MICRO_BATCHES * shape.micro_batch},
        "parallel": {"data": data, "tensor": tensor, "micro_batch": shape.micro_batch},
        "run": {"directory": "none", "steps": 1000, "device": kind, "precision": _PRECISION[kind]},
    }
    return load(json.dumps(values), []).config


def takes_tensor(kind: str, ranks: int) -> bool:
    """Whether the model of the steps can be split over this many tensor parallel ranks."""
    return ranks > 1 and _MODELS[kind]["heads"] % ranks == 0


def of_mixers(device: DeviceSpec, kind: str, ranks: int, steps: Mapping[str, MeasuredStep]) -> DeviceSpec:
    """The device with passes over the activations of layers with each mixer, from a step of each."""
    passes = {}
    for mixer, step in steps.items():
        config = step_config(kind, ranks, step.shape, mixer)
        none, one = (_compute(config, device, mixer_passes={mixer: times}) for times in (0.0, 1.0))
        passes[mixer] = max((step.compute - none) / (one - none), 0.0)
    return device.model_copy(update={"mixer_passes": passes})


def of_tensor(device: DeviceSpec, kind: str, ranks: int, step: MeasuredStep) -> DeviceSpec:
    """The device with what collectives between products reach, from a step of tensor parallel ranks."""
    config = step_config(kind, ranks, step.shape, tensor=ranks)
    left = step.compute - _compute(config, device)

    def sent(share: float) -> float:
        shared = device.model_copy(update={"tensor_share": share})
        return Planner(config, shared).plan(config.parallel).time.tensor

    shared = sent(0.5) - sent(1.0)  # the rest of the traffic takes equally long whatever the share
    share = shared / max(left - sent(1.0) + shared, shared / _MOST_SHARE)
    return device.model_copy(update={"tensor_share": share})


def _compute(config: Config, device: DeviceSpec, **changes: Any) -> float:
    """Planned compute seconds of a step, including host time that the device waits for."""
    time = Planner(config, device.model_copy(update=changes)).plan(config.parallel).time
    return time.compute + time.launches * (not device.is_asynchronous)


def fitted(device: DeviceSpec, kind: str, ranks: int, steps: Sequence[MeasuredStep]) -> DeviceSpec:
    """The device with the passes over activations, gradients and update data that these steps had.

    Args:
        device: with everything else measured.
        kind: "cpu" or "cuda".
        ranks: that trained the steps.
        steps: with many tokens in a micro-batch, and with few.
    """
    few = steps[-1]
    nothing = device.model_copy(update={"activation_passes": 0.0, "gradient_passes": 0.0, "update_passes": 1.0})

    def compute(step: MeasuredStep, **changes: float) -> float:
        return _compute(step_config(kind, ranks, step.shape), nothing, **changes)

    def update_of(passes: float) -> float:
        config = step_config(kind, ranks, few.shape)
        return Planner(config, nothing.model_copy(update={"update_passes": passes})).plan(config.parallel).time.update

    left = [step.compute - compute(step) for step in steps]
    pass_of_activations, pass_of_gradients = (
        [compute(step, **{name: 1.0}) - compute(step) for step in steps]
        for name in ("activation_passes", "gradient_passes")
    )
    activations, gradients = _solved(pass_of_activations, pass_of_gradients, left)
    once = update_of(1.0)
    update = 1.0 + (few.update - once) / (update_of(2.0) - once)
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
