"""Attention kernels: each against the oracle and against whole blocks, forward and backward."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from brt_dist.config.loading import recorded
from brt_dist.config.schema import ModelConfig
from brt_dist.kinds import ATTENTION_KERNELS
from brt_dist.model import shapes
from brt_dist.model.attention import Window
from brt_dist.model.dropout import Dropout
from brt_dist.model.kernels import blocked
from brt_dist.model.kernels.base import kernel
from brt_dist.model.kernels.blocked import Blocked
from brt_dist.model.kernels.triton import Triton, installed, is_possible
from brt_dist.model.shapes import sub_block
from tests.unit.model.networks import small, starts_of
from tests.unit.model.test_oracle import compare

KERNELS = pytest.mark.parametrize("name", list(ATTENTION_KERNELS))


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sub-blocks and pieces in networks as small as those of the tests."""
    monkeypatch.setattr(shapes, "SMALLEST_PART", 1)
    monkeypatch.setattr(blocked, "LOGITS", 100)


@KERNELS
@pytest.mark.parametrize("positions", ["t5", "rotary", "none"])
@pytest.mark.parametrize("window", [4, 5, 8])
@pytest.mark.usefixtures("small_pieces")
def test_every_kernel_equals_the_oracle(name: str, positions: str, window: int) -> None:
    config = small(window=window, positions=positions, attention_kernel=name)
    compare(config, starts_of([1, 0, 0], [0, 1, 0]), 1)


@KERNELS
@pytest.mark.usefixtures("small_pieces")
def test_every_kernel_equals_the_oracle_with_feedback(name: str) -> None:
    """Gradients then run through the cache, from block to block."""
    compare(small(window=8, feedback=True, attention_kernel=name), starts_of([1, 0, 0], [0, 1, 0]), 1)


@KERNELS
@pytest.mark.parametrize("rate", [0.0, 0.3])
@pytest.mark.usefixtures("small_pieces")
def test_every_kernel_takes_dropout(name: str, rate: float) -> None:
    generator = torch.Generator().manual_seed(0)

    def numbers(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()

    queries, keys, values = numbers(2, 3, 2, 8, 6), numbers(2, 3, 2, 16, 6), numbers(2, 3, 2, 16, 6)
    visible = numbers(2, 1, 8)
    mask = Dropout(rate, 0, 0, (3, 4)).attention(queries.device, 2, 8, 0)
    direction = numbers(2, 3, 2, 8, 6).detach()

    def found(name: str) -> list[torch.Tensor]:
        out = kernel(name, queries.device)(queries, Window(keys, values), visible, mask)
        return [out, *torch.autograd.grad((out * direction).sum(), [queries, keys, values, visible])]

    for ours, theirs in zip(found(name), found("plain"), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rate", [0.0, 0.3])
@pytest.mark.parametrize("smallest", [1, 64])  # 64: whole blocks, a few at a time
@pytest.mark.parametrize("logits", [1, 60, 2**21])
@pytest.mark.parametrize("sizes", [(1, 1, 1), (1, 1, 3), (1, 4, 2), (3, 1, 2), (3, 4, 1)])
def test_blocked_equals_plain_however_it_is_cut(
    sizes: tuple[int, int, int], logits: int, smallest: int, rate: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shapes, "SMALLEST_PART", smallest)
    monkeypatch.setattr(blocked, "LOGITS", logits)
    values = [torch.randn(*sizes, rows, 3, dtype=torch.float64).requires_grad_() for rows in (4, 8, 8)]
    visible = torch.randn(sizes[2], 1, 4, dtype=torch.float64).requires_grad_()
    direction = torch.randn(*sizes, 4, 3, dtype=torch.float64)
    mask = Dropout(rate, 0, 0, tuple(range(sizes[0]))).attention(visible.device, sizes[2], 4, 0)

    def found(name: str) -> list[torch.Tensor]:
        out = kernel(name, visible.device)(values[0], Window(*values[1:]), visible, mask)
        return [out, *torch.autograd.grad((out * direction).sum(), [*values, visible])]

    for ours, theirs in zip(found("blocked"), found("plain"), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("logits", [1, 100, 2**21])
@pytest.mark.parametrize("outer", [(3,), (3, 4)])
def test_attention_to_states_is_the_same_however_it_is_cut(
    outer: tuple[int, ...], logits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocked, "LOGITS", logits)
    given = [torch.randn(*outer, 2, rows, 3, dtype=torch.float64).requires_grad_() for rows in (4, 5, 5)]
    direction = torch.randn(*outer, 2, 4, 3, dtype=torch.float64)

    def found(name: str) -> list[torch.Tensor]:
        out = kernel(name, direction.device).everywhere(*given)
        return [out, *torch.autograd.grad((out * direction).sum(), given)]

    for ours, theirs in zip(found("blocked"), found("plain"), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@KERNELS
def test_bf16_is_near_float32(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    exact = [torch.randn(1, 2, 2, rows, 16, generator=generator) for rows in (128, 256, 256)]
    visible = torch.randn(2, 1, 128, generator=generator)

    def found(name: str, dtype: torch.dtype) -> list[torch.Tensor]:
        queries, keys, values = (x.to(dtype).requires_grad_() for x in exact)
        out = kernel(name, queries.device)(queries, Window(keys, values), visible, None)
        assert out.dtype == dtype
        return [out, *torch.autograd.grad(out.float().square().sum(), [queries, keys, values])]

    for ours, theirs in zip(found(name, torch.bfloat16), found("plain", torch.float32), strict=True):
        assert (ours.float() - theirs).abs().max() < 0.05 * theirs.abs().max()


def test_triton_leaves_to_plain_what_it_has_no_kernel_for() -> None:
    assert not is_possible(torch.zeros(1, 1, 1, 8, 16))  # there is no GPU
    with FakeTensorMode():
        on_gpu = {size: torch.empty(1, 1, 1, 8, size, device="cuda", dtype=torch.bfloat16) for size in (8, 16, 24, 128)}
    assert [is_possible(fake) for fake in on_gpu.values()] == [False, installed(), False, installed()]
    assert not is_possible(on_gpu[16].float())


def test_a_sub_block_divides_the_window_and_is_not_too_small() -> None:
    assert [sub_block(window) for window in (512, 2048, 256, 128, 96, 32, 30)] == [128, 512, 64, 64, 96, 32, 30]


def test_auto_takes_the_device_into_account() -> None:
    assert isinstance(kernel("auto", torch.device("cpu")), Blocked)
    assert isinstance(kernel("auto", torch.device("cuda")), Triton)
    assert ModelConfig().attention_kernel == "auto"


def test_what_0_1_0_wrote_is_computed_as_in_0_1_0() -> None:
    """It wrote every key, so its configs can be told from those of users who give some older keys."""
    written = {
        "mlp_width": 8, "recurrent_layers": [1], "states": 4, "cell": "skip", "gate": "fixed", "clear_state": False,
        "state_dtype": "float32", "positions": "t5", "attention_scale": "absolute",
    }  # fmt: skip
    rest = {"data": {"dataset": "x"}, "run": {"directory": "y", "steps": 1}}
    assert recorded({"model": {"layers": 3, **written}, **rest}, "step_1").model.attention_kernel == "plain"
    written.pop("gate")
    assert recorded({"model": {"layers": 3, **written}, **rest}, "step_1").model.attention_kernel == "auto"
