"""The Triton kernels in Triton's interpreter, against torch in float64: `make test-triton`.

Without Triton, which no CPU build of torch brings, these tests are skipped.  `tests/gpu` runs the kernels compiled.
"""

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("not in Triton's interpreter", allow_module_level=True)

from brt_dist.model import cross_entropy as tiles
from brt_dist.model import norms, rows, triton_rows
from brt_dist.model.attention import Window
from brt_dist.model.dropout import Mask
from brt_dist.model.kernels.base import AttentionKernel
from brt_dist.model.kernels.plain import Plain
from brt_dist.model.kernels.triton import Triton, is_possible
from brt_dist.parallel.layout import single_process

WORST = {torch.float32: 1e-6, torch.float16: 2e-3}


@pytest.fixture(scope="module", autouse=True)
def world_of_one() -> Iterator[None]:
    with single_process():
        yield


def compare(compute: Callable[[bool], Callable[..., Tensor]], given: list[Tensor], dtype: torch.dtype) -> None:
    """Result and gradients of `compute(True)` in `dtype` against those of `compute(False)` in float64."""
    found = []
    for is_ours in (True, False):
        inputs = [x.to(dtype if is_ours else torch.float64).detach().requires_grad_() for x in given]
        out = compute(is_ours)(*inputs)
        direction = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
        found.append([out, *torch.autograd.grad(out, inputs, direction)])
    for ours, exact in zip(*found, strict=True):
        assert (ours.double() - exact).norm() <= WORST[dtype] * exact.norm()


def kernel_of(is_ours: bool) -> AttentionKernel:
    return Triton() if is_ours else Plain()


@pytest.mark.parametrize("dtype", WORST, ids=str)
@pytest.mark.parametrize("rate", [0.0, 0.3])
@pytest.mark.parametrize("sizes", [(2, 2, 2, 16, 16), (1, 2, 2, 40, 32), (1, 2, 1, 200, 16)], ids=str)
def test_attention_in_a_window(sizes: tuple[int, ...], rate: float, dtype: torch.dtype) -> None:
    """Heads may lie in any order in memory, as after the projection of all of them at once."""
    streams, blocks, heads, window, size = sizes
    generator = torch.Generator().manual_seed(0)

    def numbers(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    queries = numbers(blocks, window, streams, heads, 2 * size).permute(2, 0, 3, 1, 4)[..., :size] / 3
    keys, values = (numbers(streams, blocks, heads, 2 * window, size) for _ in range(2))
    assert is_possible(queries)
    dropped = torch.rand(streams, 1, heads, window, 2 * window, generator=generator) < rate
    mask = Mask(dropped, rate) if rate else None

    def compute(is_ours: bool) -> Callable[..., Tensor]:
        def attention(q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
            wide = torch.promote_types(visible.dtype, torch.float32)
            return kernel_of(is_ours)(q, Window(k, v), visible.to(wide), mask)

        return attention

    for of_heads in (heads, 1):
        compare(compute, [queries, keys, values, numbers(of_heads, 1, window)], dtype)


@pytest.mark.parametrize("dtype", WORST, ids=str)
@pytest.mark.parametrize("outer", [(2, 3, 2), (2, 2)], ids=str)
def test_attention_to_everything(outer: tuple[int, ...], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    given = [torch.randn(*outer, length, 32, generator=generator) / 3 for length in (40, 70, 70)]
    compare(lambda is_ours: kernel_of(is_ours).everywhere, given, dtype)


def choose(monkeypatch: pytest.MonkeyPatch, function: Callable[..., Tensor]) -> Callable[[bool], Any]:
    def compute(is_ours: bool) -> Callable[..., Tensor]:
        monkeypatch.setattr(rows, "fused", lambda x: triton_rows if is_ours else None)
        return function

    return compute


def test_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    for shape in ((7, 3, 100), (5000, 3, 8)):
        compare(choose(monkeypatch, norms.rms_normed), [torch.randn(shape), torch.randn(shape[-1])], torch.float32)
    # contexts of a Block-State layer: a weight of each column, for all filters or for each
    for x, weight in (((2, 3, 4, 16), (1, 16)), ((2, 3, 1, 5, 16), (1, 1, 16)), ((2, 3, 4, 5, 16), (4, 1, 16))):
        compare(choose(monkeypatch, norms.rms_normed), [torch.randn(x), torch.randn(weight)], torch.float32)


def test_unit_length(monkeypatch: pytest.MonkeyPatch) -> None:
    apart = torch.randn(2, 4, 6, 5, 96).permute(1, 3, 0, 2, 4)[..., :32]
    compare(choose(monkeypatch, norms.unit_length), [apart], torch.float32)
    compare(choose(monkeypatch, norms.unit_length), [apart, torch.randn(2, 1, 1)], torch.float32)
    compare(choose(monkeypatch, norms.unit_length), [torch.randn(2, 3, 5, 16), torch.randn(3, 1, 1)], torch.float32)


@pytest.mark.parametrize("vocab", [61, 40, 7])
@pytest.mark.parametrize("is_weighted", [False, True])
def test_cross_entropy(vocab: int, is_weighted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "TOKENS", 16)
    monkeypatch.setattr(tiles, "COLUMNS", 24)
    monkeypatch.setattr(triton_rows, "SOFTMAX", 16)
    target, shares = torch.randint(vocab, (20, 3)), torch.randn(20, 3)

    def loss(x: Tensor, weight: Tensor) -> Tensor:
        losses = tiles.cross_entropy(x, weight, target, tiles.Vocabulary(0, vocab), False)
        return losses * shares if is_weighted else losses.sum()  # whose gradient is one number, not many

    compare(choose(monkeypatch, loss), [torch.randn(20, 3, 12), torch.randn(64, 12)], torch.float32)


@pytest.mark.parametrize("vocab", [61, 7])
def test_the_sum_of_a_cross_entropy(vocab: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One tile has the vocabulary, so the forward pass makes the gradients."""
    monkeypatch.setattr(tiles, "TOKENS", 16)
    monkeypatch.setattr(triton_rows, "SOFTMAX", 16)
    target, counted = torch.randint(vocab, (20, 3)), torch.rand(20, 3) < 0.7

    def loss(x: Tensor, weight: Tensor) -> Tensor:
        return tiles.summed_cross_entropy(x, weight, target, counted, tiles.Vocabulary(0, vocab), False)

    compare(choose(monkeypatch, loss), [torch.randn(20, 3, 12), torch.randn(64, 12)], torch.float32)
