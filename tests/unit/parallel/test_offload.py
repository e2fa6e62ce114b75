"""Optimizer state and weights in host memory: the same training, kept and updated elsewhere."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from brt_dist.parallel import update_internals
from brt_dist.parallel.device import Device
from brt_dist.parallel.engine import build_engine
from brt_dist.parallel.layout import Layout, single_process
from brt_dist.parallel.micro_batches import StepInput
from tests.scale.settings import small


@pytest.fixture(scope="module")
def device() -> Iterator[Device]:
    with single_process() as found:
        yield found


def trained(device: Device, stage: int, precision: str, zero: dict[str, Any]) -> tuple[dict[str, Tensor], list[float]]:
    """Weights after four steps of two micro-batches, the second step being skipped; and the norms."""
    config = small({"zero_stage": stage, "zero": zero}, precision)
    engine = build_engine(config, Layout.of(config, 0), device)
    tokens = torch.arange(64).view(2, 32)
    starts = torch.tensor([[True, False]] * 2)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    norms = []
    try:
        for number in range(1, 5):
            rate = float("nan") if number == 2 else 1.0
            hook = engine.parameters[-1].local.register_hook(lambda gradient, rate=rate: gradient * rate)
            step = StepInput(number, starts, tokens, tokens.roll(-1, 1), mask, 64)
            result = engine.train_step(step, 1e-2)
            hook.remove()
            assert result.is_finite == (number != 2)
            norms.append(result.grad_norm)
        assert engine.updates == 3
        assert all(piece.values.device.type == "cpu" for piece in engine.pieces())
        return engine.weights(), norms
    finally:
        engine.close()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("stage", "zero"),
    [
        (1, {"offload_optimizer": "cpu"}),
        (2, {"offload_optimizer": "cpu"}),
        (3, {"offload_optimizer": "cpu"}),
        (3, {"offload_optimizer": "cpu", "offload_parameters": "cpu"}),
    ],
)
def test_offloaded_training_is_the_same(device: Device, stage: int, zero: dict[str, Any], precision: str) -> None:
    expected, norms = trained(device, stage, precision, {})
    found, found_norms = trained(device, stage, precision, zero)
    assert found_norms == pytest.approx(norms, rel=1e-5 if precision == "fp32" else 1e-2)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-5 if precision == "fp32" else 2e-2)


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("place", ["none", "cpu"])
def test_gradients_that_tensor_parallel_ranks_add_up_are_measured_after_that(
    monkeypatch: pytest.MonkeyPatch, device: Device, stage: int, place: str
) -> None:
    """As if another rank had the same gradient of every parameter; DeepSpeed takes norms before, if it offloads."""
    norms = {}
    for ranks in (1, 2):
        config = small({"zero_stage": stage, "zero": {"offload_optimizer": place}}, "bf16")
        engine = build_engine(config, Layout.of(config, 0), device)
        engine._whole = engine.parameters
        monkeypatch.setattr(update_internals, "sum_over_ranks", partial(multiply, ranks))
        tokens = torch.arange(64).view(2, 32)
        starts, mask = torch.tensor([[True, False]] * 2), torch.ones_like(tokens, dtype=torch.bool)
        norms[ranks] = engine.train_step(StepInput(1, starts, tokens, tokens.roll(-1, 1), mask, 64), 0.0).grad_norm
        engine.close()
    assert norms[2] == pytest.approx(2 * norms[1], rel=1e-6)


def multiply(ranks: int, gradients: list[Tensor], device: torch.device) -> None:
    for gradient in gradients:
        gradient.mul_(ranks)


@pytest.mark.parametrize("key", ["offload_optimizer", "offload_parameters"])
def test_offload_to_a_disk_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match=r"swapped to disk .* nearest: cpu"):
        small({"zero_stage": 3, "zero": {key: "nvme"}})
