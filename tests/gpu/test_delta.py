"""The delta rules by the kernels of flash-linear-attention, against our own chunked form."""

from typing import Any

import pytest
import torch
from torch import Tensor

from brt_dist.model import fla_kernels
from brt_dist.model.delta_rule import delta_rule
from brt_dist.parallel.device import Device


@pytest.mark.parametrize("has_decay", [False, True])
def test_the_kernels_give_what_we_compute(gpu: Device, has_decay: bool) -> None:
    if not fla_kernels.installed():
        pytest.skip("flash-linear-attention is not installed")
    generator = torch.Generator().manual_seed(0)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    streams, chunks, heads, chunk, size = 2, 4, 2, 64, 64
    shape = (streams, chunks, heads, chunk)
    given: dict[str, Any] = {
        "queries": numbers(*shape, size),
        "keys": torch.nn.functional.normalize(numbers(*shape, size), dim=-1),
        "values": numbers(*shape, size),
        "rates": torch.sigmoid(numbers(*shape)),
        "decays": -torch.nn.functional.softplus(numbers(*shape)) / 16 if has_decay else None,
        "state": numbers(streams, heads, size, size) / 8,
    }
    starts = torch.tensor([[False, True, False, False], [True, False, False, True]])
    direction = numbers(*shape, size)

    def found(compute: Any, dtype: torch.dtype, device: Any) -> list[Tensor]:
        inputs = {name: None if x is None else x.to(torch.bfloat16).to(device, dtype).requires_grad_()
                  for name, x in given.items()}  # fmt: skip
        out, state = compute(**inputs, starts=starts.to(device))
        total = (out.float() * direction.to(device)).sum() + state.float().square().sum()
        wanted = [x for x in inputs.values() if x is not None]
        return [out, state, *torch.autograd.grad(total, wanted)]

    exact = found(delta_rule, torch.float64, "cpu")
    for ours, theirs in zip(found(fla_kernels.delta_rule, torch.bfloat16, gpu.torch), exact, strict=True):
        assert (ours.detach().cpu().double() - theirs).norm() < 2e-2 * theirs.norm()
