"""Heads that read a machine's state and stack from hidden states."""

import pytest
import torch

from brt_dist.data.objectives.base import UNKNOWN
from brt_dist.languages import LANGUAGES, labels
from brt_dist.model.oracle_heads import OracleHeads, OracleLabels, UncertaintyWeights

WORDS = [[2, 3, 3, 5, 5, 4], [2, 4, 3, 2, 4, 5], [3, 2, 2, 4, 4, 5]]


def labelled() -> tuple[torch.Tensor, torch.Tensor]:
    found = [labels(LANGUAGES["dyck"](2, 3), word) for word in WORDS]
    states = torch.tensor([row.states for row in found if row])
    stacks = torch.tensor([[[*stack, 0, 0, 0][:3] for stack in row.stacks] for row in found if row])
    return states, stacks


@pytest.mark.parametrize("decomposition", ["forced", "latent"])
def test_what_the_hidden_state_holds_is_read(decomposition: str) -> None:
    states, stacks = labelled()
    torch.manual_seed(0)
    # four slices of 6 channels: the state, and the three slots
    slices = torch.cat([states[..., None], stacks], -1)
    x = torch.nn.functional.one_hot(slices, 6).float().flatten(-2) * 4
    mask = torch.ones_like(states, dtype=torch.bool)
    heads = OracleHeads(24, 2, 3, 6, decomposition)  # type: ignore[arg-type]
    optimizer = torch.optim.Adam(heads.parameters(), lr=0.03)
    for _ in range(150):
        losses = heads.losses(x, states, stacks, mask)
        optimizer.zero_grad()
        sum(losses).backward()
        optimizer.step()
    assert losses.state < 0.02 and losses.stack < 0.05
    shuffled = heads.losses(x.flip(0), states, stacks, mask)
    assert shuffled.stack > 0.5  # it is read from x, and nowhere else


def test_a_slot_is_read_from_its_own_slice() -> None:
    heads = OracleHeads(24, 2, 3, 6, "forced")
    x = torch.randn(5, 24)
    _, before = heads(x)
    x[:, 12:18] += 1.0
    _, after = heads(x)
    assert torch.equal(before[:, [0, 2]], after[:, [0, 2]])
    assert not torch.equal(before[:, 1], after[:, 1])
    with pytest.raises(ValueError, match="3 channels cannot be cut into 4 slices"):
        OracleHeads(3, 2, 3, 6, "forced")


def test_masked_positions_do_not_count_and_weights_are_the_paper_s() -> None:
    states, stacks = labelled()
    heads, x = OracleHeads(24, 2, 3, 6, "latent"), torch.randn(3, 8, 24)
    mask = torch.ones_like(states, dtype=torch.bool)
    mask[:, 5:] = False
    found = heads.losses(x, states, stacks, mask)
    assert torch.equal(found.stack, heads.losses(x[:, :5], states[:, :5], stacks[:, :5], mask[:, :5]).stack)
    weights, losses = UncertaintyWeights(2), torch.tensor([2.0, 3.0])
    expected = (0.5 * losses / 1.1**2).sum() + 2 * torch.log(torch.tensor(1.1))
    assert torch.allclose(weights(losses), expected)


@pytest.mark.parametrize("weight", [0.7, 0.0])
def test_supervision_adds_the_gradient_of_the_losses(weight: float) -> None:
    """As if the losses were written down; with a weight of 0 the heads alone get it."""
    states, stacks = labelled()
    mask = torch.ones_like(states, dtype=torch.bool)
    mask[0, 5:] = False
    torch.manual_seed(1)
    heads, given = OracleHeads(24, 2, 3, 6, "forced", weight=weight).double(), torch.randn(8, 3, 24).double()
    classes = torch.cat([states[..., None], stacks], -1).masked_fill(~mask[..., None], UNKNOWN)
    count, found = int(mask.sum()), []
    for is_ours in (True, False):
        x = given.clone().requires_grad_()
        if is_ours:
            out = heads.supervised(x, OracleLabels(classes, 1 / count))
            assert torch.equal(out, x)
            out.square().sum().backward()
        else:
            losses = heads.losses((x if weight else x.detach()).transpose(0, 1), states, stacks, mask)
            (x.square().sum() + (weight or 1.0) * (losses.state + losses.stack)).backward()
        assert x.grad is not None
        found.append([x.grad, *(parameter.grad for parameter in heads.parameters())])
        heads.zero_grad()
    for ours, expected in zip(*found, strict=True):
        assert torch.allclose(ours, expected, rtol=1e-12, atol=1e-14)
