"""The update that we take apart equals, bit for bit, the one that DeepSpeed makes in one call."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from brt_dist.parallel.device import Device
from brt_dist.parallel.engine import Engine, build_engine
from brt_dist.parallel.layout import Layout, MegatronGroups, single_process
from brt_dist.parallel.micro_batches import StepInput
from tests.scale.settings import small

LIMIT = 0.1  # below every norm here


@pytest.fixture(scope="module")
def device() -> Iterator[Device]:
    with single_process() as found:
        yield found


def by_deepspeed_alone(engine: Engine) -> None:
    """Take back what we put into DeepSpeed's place."""
    from deepspeed.runtime.utils import clip_grad_norm_

    zero: Any = engine._deepspeed.optimizer
    for name in ("scaled_global_norm", "unscale_and_clip_grads", "check_overflow", "_get_norm_groups"):
        vars(zero).pop(name, None)
    if engine.config.parallel.zero_stage == 0:
        weights = [parameter.local for parameter in engine.parameters]
        engine._update.decide = lambda norm: clip_grad_norm_(weights, LIMIT, mpu=MegatronGroups())  # type: ignore[method-assign]


def trained(device: Device, stage: int, kind: str, is_reference: bool) -> tuple[dict[str, Tensor], list[float]]:
    config = small({"zero_stage": stage}, "fp32", {"name": kind, "clip_norm": LIMIT})
    engine = build_engine(config, Layout.of(config, 0), device)
    if is_reference:
        by_deepspeed_alone(engine)
    tokens = torch.arange(64).view(2, 32) * 7 % 64
    starts, mask = torch.tensor([[True, False]] * 2), torch.ones_like(tokens, dtype=torch.bool)
    steps = [StepInput(number, starts, tokens, tokens.roll(-1, 1), mask, 64) for number in range(1, 5)]
    norms = [engine.train_step(step, 1e-2).grad_norm for step in steps]
    weights = engine.weights()
    engine.close()
    return weights, norms


@pytest.mark.parametrize(
    ("stage", "kind"), [(0, "adamw"), (0, "adafactor"), (1, "adamw"), (1, "adafactor"), (2, "adamw"), (3, "adamw")]
)
def test_weights_are_those_of_deepspeeds_own_step(device: Device, stage: int, kind: str) -> None:
    ours, norms = trained(device, stage, kind, is_reference=False)
    theirs, _ = trained(device, stage, kind, is_reference=True)
    assert min(norms) > LIMIT
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_weight_without_a_gradient_decays_and_is_saved_whatever_the_zero_stage(device: Device, stage: int) -> None:
    config = small({"zero_stage": stage}, "fp32", {"name": "adamw", "weight_decay": 0.5, "schedule": "constant"})
    config = config.model_copy(update={"data": config.data.model_copy(update={"segment": config.model.window})})
    engine = build_engine(config, Layout.of(config, 0), device)
    tokens = torch.arange(2 * config.model.window).view(2, -1) * 7 % 64
    starts, mask = torch.tensor([[True]] * 2), torch.ones_like(tokens, dtype=torch.bool)
    # writes a state that a segment of one block does not read again
    name = next(name for name in engine.weights() if name.endswith("update.output.weight"))
    before = engine.weights()[name].clone()
    engine.train_step(StepInput(1, starts, tokens, tokens.roll(-1, 1), mask, tokens.numel()), 1e-2)
    assert torch.equal(engine.weights()[name], before * (1 - 0.5 * 1e-2))
    saved = {piece.tensor.name for piece in engine.pieces()}
    assert {f"weights/{name}", f"optimizer/{name}/exp_avg", f"optimizer/{name}/exp_avg_sq"} <= saved
    engine.close()
