"""Attention kernels on a GPU, against float64 on the CPU; and whether each gives the same bits twice."""

import pytest
import torch
from torch import Tensor

from brt_dist.kinds import ATTENTION_KERNELS
from brt_dist.model.attention import Window
from brt_dist.model.kernels.base import kernel
from brt_dist.parallel.device import Device

# torch.float32: of the largest value.  bf16 has 8 bits, and a gradient is a sum of many rounded products.
WORST = {torch.float32: 2e-5, torch.bfloat16: 2e-2}
SIZES = [(2, 3, 4, 128, 64), (1, 2, 2, 512, 128), (2, 4, 2, 64, 32)]  # b, t, h, W, E


def numbers(sizes: tuple[int, ...], seed: int) -> dict[str, Tensor]:
    streams, blocks, heads, window, size = sizes
    generator = torch.Generator().manual_seed(seed)
    shapes = {"queries": window, "keys": 2 * window, "values": 2 * window, "direction": window}
    made = {
        name: torch.randn(streams, blocks, heads, rows, size, generator=generator, dtype=torch.float64)
        for name, rows in shapes.items()
    }
    made["queries"] = torch.nn.functional.normalize(made["queries"], dim=-1)
    made["keys"] = torch.nn.functional.normalize(made["keys"], dim=-1) * 3
    made["keys"][0, 0, :, :window] = made["values"][0, 0, :, :window] = 0.0  # a document starts
    return made | {"visible": torch.randn(heads, 1, window, generator=generator, dtype=torch.float64)}


def found(name: str, given: dict[str, Tensor], dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    moved = {key: value.to(device, dtype if key != "visible" else torch.promote_types(dtype, torch.float32))
             for key, value in given.items()}  # fmt: skip
    inputs = [moved[key].requires_grad_() for key in ("queries", "keys", "values", "visible")]
    out = kernel(name, device)(inputs[0], Window(inputs[1], inputs[2]), inputs[3], None)
    return [out.detach(), *torch.autograd.grad(out, inputs, moved["direction"])]


@pytest.mark.parametrize("dtype", WORST, ids=str)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("name", list(ATTENTION_KERNELS))
def test_every_kernel_equals_float64(gpu: Device, name: str, sizes: tuple[int, ...], dtype: torch.dtype) -> None:
    given = {key: value.to(dtype).double() if key != "visible" else value for key, value in numbers(sizes, 0).items()}
    ours = found(name, given, dtype, gpu.torch)
    for place, mine, exact in zip(("out", "q", "k", "v", "bias"), ours,
                                  found("plain", given, torch.float64, torch.device("cpu")), strict=True):  # fmt: skip
        difference = (mine.cpu().double() - exact).norm() / exact.norm()
        assert difference < WORST[dtype], (place, float(difference))


@pytest.mark.parametrize("name", list(ATTENTION_KERNELS))
def test_every_kernel_gives_the_same_bits_twice(gpu: Device, name: str) -> None:
    given = numbers((2, 8, 4, 512, 64), 1)
    for one, other in zip(*(found(name, given, torch.bfloat16, gpu.torch) for _ in range(2)), strict=True):
        assert torch.equal(one, other)
