"""The LSTM mixer against torch's LSTM.  What every kind of mixer must do is in test_every_mixer.py."""

from itertools import pairwise

import torch
from torch import nn

from brt_dist.model.mixers.lstm import lstm


def test_torch_computes_the_same_with_documents_that_start_anywhere() -> None:
    """Document by document, with 1 in torch's bias of the forget gate."""
    torch.manual_seed(0)
    reference = nn.LSTM(3, 5).double()
    x = torch.randn(24, 2, 3, dtype=torch.float64, requires_grad=True)
    weights = [reference.weight_ih_l0, reference.weight_hh_l0]
    bias = (reference.bias_ih_l0 + reference.bias_hh_l0).detach().clone()
    bias[5:10] -= 1  # the forget gate's, which the mixer adds itself
    starts = torch.zeros(2, 6, dtype=torch.bool)
    starts[0, 0] = starts[0, 2] = starts[1, 3] = True
    hidden, cell = (torch.randn(2, 5, dtype=torch.float64) for _ in range(2))
    y, last, cells = lstm(nn.functional.linear(x, weights[0], bias), weights[1], hidden, cell, starts)
    for stream, cuts in ((0, (0, 8, 24)), (1, (0, 12, 24))):
        carried = None if stream == 0 else (hidden[1:].unsqueeze(0), cell[1:].unsqueeze(0))
        for begin, end in pairwise(cuts):
            expected, (final, final_cell) = reference(x[begin:end, stream : stream + 1], carried)
            assert (expected[:, 0] - y[begin:end, stream]).abs().max() < 1e-12
            carried = None
        assert (final[0, 0] - last[stream]).abs().max() < 1e-12
        assert (final_cell[0, 0] - cells[stream]).abs().max() < 1e-12
    direction = torch.randn(y.shape, dtype=torch.float64)
    ours = torch.autograd.grad((y * direction)[8:, 0].sum(), [x, *weights])
    again = torch.autograd.grad((reference(x[8:, :1])[0][:, 0] * direction[8:, 0]).sum(), [x, *weights])
    for one, other in zip(ours, again, strict=True):
        assert (one - other).abs().max() < 1e-12
