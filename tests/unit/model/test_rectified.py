"""ReLU between two products, written in place: the same bits as torch's."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear

from brt_dist.model.rectified import rectified


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_results_and_gradients_are_those_of_relu(dtype: torch.dtype) -> None:
    draws = torch.Generator().manual_seed(0)
    shapes = (7, 3, 16), (32, 16), (16, 32)
    x, hidden, output = (torch.randn(shape, generator=draws).to(dtype).requires_grad_() for shape in shapes)

    def found(activation: Callable[[Tensor], Tensor]) -> list[Tensor]:
        y = linear(activation(linear(x, hidden)), output)
        weights = torch.arange(y.numel(), dtype=dtype).view_as(y)
        return [y, *torch.autograd.grad((y * weights).sum(), (x, hidden, output))]

    for ours, theirs in zip(found(rectified), found(torch.relu), strict=True):
        assert theirs.any() and torch.equal(ours, theirs)
