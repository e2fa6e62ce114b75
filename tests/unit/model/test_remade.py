"""Tensors that the backward pass makes again: gradients bit for bit, what is kept, and how often each is made."""

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from brt_dist.model.layers import Layer
from brt_dist.model.norms import RMSNorm
from brt_dist.model.recompute import recomputed
from brt_dist.model.remade import Remade
from tests.scale.activations import left_by
from tests.unit.model.networks import small, starts_of


class Doubled:
    """Counts how often it is called."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * 2


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()


def gradients(remakes: bool, use: Callable[[Tensor], Tensor]) -> tuple[Tensor, ...]:
    x, remade = numbers(4, 3), Remade()
    if remakes:
        doubled = remade.made(Doubled(), x)
        with remade.read():
            out = use(doubled)
    else:
        out = use(x * 2)
    return out, *torch.autograd.grad(out.sum(), x)


@pytest.mark.parametrize(
    "use",
    [
        lambda x: x.square(),
        lambda x: x[1:, ::2].exp() * x[0, 0],  # views of it
        lambda x: x.tanh() @ x.transpose(0, 1),  # a result that its own function keeps
        lambda x: x.detach() * x,
    ],
)
def test_gradients_are_the_same_bit_for_bit(use: Callable[[Tensor], Tensor]) -> None:
    for ours, theirs in zip(gradients(True, use), gradients(False, use), strict=True):
        assert torch.equal(ours, theirs)


def test_it_is_made_once_more_for_all_who_need_it() -> None:
    make, x, remade = Doubled(), numbers(5), Remade()
    doubled = remade.made(make, x)
    with remade.read():
        total = doubled.square().sum() + doubled.exp().square().sum() + doubled[2:].square().sum()
    assert make.calls == 1
    total.backward(retain_graph=True)
    assert make.calls == 2
    first, x.grad = x.grad, None
    total.backward()
    assert first is not None and x.grad is not None and torch.equal(first, x.grad)


def test_what_is_made_of_what_was_made_is_made_again_as_well() -> None:
    x, remade = numbers(6), Remade()
    first, second = Doubled(), Doubled()
    doubled = remade.made(first, x)
    twice = remade.made(second, doubled[1:])
    held = StorageWeakRef(doubled.untyped_storage())
    with remade.read():
        out = twice.square().sum()
    del doubled, twice
    assert held.expired()
    out.backward()
    assert x.grad is not None and torch.equal(x.grad[1:], 32 * x[1:].detach()) and x.grad[0] == 0
    assert first.calls == second.calls == 2


def test_another_tensor_is_not_mistaken_for_one_that_is_gone() -> None:
    """While readers run, no tensor may get the storage of one that was made and is not used any more."""
    x, remade = numbers(1000), Remade()
    first = remade.made(Doubled(), x)
    with remade.read():
        squares = [first.square()]
        unused = [remade.made(Doubled(), x) for _ in range(100)]
        del unused
        squares += [(x * 3).square() for _ in range(100)]
    torch.stack(squares).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, (8 + 100 * 18) * x.detach(), rtol=1e-12, atol=1e-12)


def test_nothing_holds_the_graph() -> None:
    """A function that keeps its own result must not keep itself: memory would grow with each step."""
    x, remade = numbers(10), Remade()
    doubled = remade.made(Doubled(), x)
    with remade.read():
        out = doubled.tanh().exp()
    held = StorageWeakRef(out.untyped_storage())
    gc.collect()
    gc.disable()
    try:
        del out, doubled
        assert held.expired()
    finally:
        gc.enable()


def test_weights_that_are_taken_away_after_the_forward_pass() -> None:
    """As ZeRO-3 does: the norm's weight is empty when the product after it needs the norm."""
    norm, product = RMSNorm(3).double(), nn.Linear(3, 2, bias=False).double()
    nn.init.uniform_(norm.weight)
    x = numbers(4, 3)
    out = norm(x, product)
    whole = norm.weight.data.clone()
    norm.weight.data.fill_(torch.nan)  # its memory is for others
    norm.weight.data = torch.empty(0, dtype=torch.float64)

    def gathered(*_: Any) -> None:
        norm.weight.data = whole

    product.weight.register_hook(gathered)  # only once the product has its gradient
    out.sum().backward()
    expected = product.weight.grad
    product.weight.grad = None
    product(norm(x.detach())).sum().backward()
    assert expected is not None and product.weight.grad is not None and torch.equal(expected, product.weight.grad)


@pytest.mark.parametrize("remade", [True, False])
def test_a_layer_keeps_less(remade: bool) -> None:
    """Its 17 tensors of tokens by width without it: 10; the FFN's hidden ones are 4 of them."""
    config = small(window=8, width=64, heads=4, head_dim=16, mlp_width=256, recurrent_layers=[], layers=1)
    layer = Layer(config, 0)
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, -1, 1)
    x = torch.randn(256, 1, 64, requires_grad=True)
    starts = starts_of([0] * 32)
    memory = layer.blank_memory(1)

    def run() -> list[Tensor]:
        return [layer(x, memory, starts)[0]]

    def rerun() -> list[Tensor]:
        return [recomputed(run_all)]

    def run_all() -> Tensor:
        return run()[0]

    left, results = left_by(run if remade else rerun)
    assert left / x.nbytes == pytest.approx(9 if remade else 0, abs=0.5)  # besides its input
    kept = torch.autograd.grad(results[0].square().sum(), [x, *layer.parameters()])
    again = torch.autograd.grad(run_all().square().sum(), [x, *layer.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(kept, again, strict=True))
