"""The model on several tensor parallel ranks against the model on one: everything it computes, in fp32."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from brt_dist.config.schema import ModelConfig
from tests.parallel.pool import RankPool

pytestmark = pytest.mark.slow

VARIANTS = {
    "transformer-xl": {"recurrent_layers": ()},
    "skip-fixed": {},
    "single-fixed": {"cell": "single"},
    "dual-fixed": {"cell": "dual"},
    "skip-lstm": {"gate": "lstm"},
    "single-lstm": {"gate": "lstm", "cell": "single"},
    "dual-lstm": {"gate": "lstm", "cell": "dual", "recurrent_layers": (0, 2)},
    "feedback": {"gate": "lstm", "cell": "single", "recurrent_layers": (0, 2), "feedback": True},
    "rotary": {"positions": "rotary"},
}


@pytest.fixture(scope="module")
def ranks() -> Iterator[RankPool]:
    with RankPool() as pool:
        yield pool


@pytest.mark.parametrize("sequence_parallel", [False, True], ids=["whole", "sequence-parallel"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_two_ranks_compute_what_one_does(ranks: RankPool, variant: str, sequence_parallel: bool) -> None:
    config = ModelConfig(
        layers=3, width=24, heads=4, head_dim=8, mlp_width=32, vocab_size=37, window=8, states=6, dropout=0.2,
        **{"recurrent_layers": (1,), **VARIANTS[variant]},
    )  # fmt: skip
    (one,) = ranks.run(1, read_two_segments, config, 1, False)
    first, second = ranks.run(2, read_two_segments, config, 2, sequence_parallel)

    torch.testing.assert_close(first["losses"], one["losses"], rtol=1e-6, atol=1e-6)
    assert torch.equal(first["losses"], second["losses"])
    assert first["gradients"].keys() == one["gradients"].keys()
    for name, (expected, _) in one["gradients"].items():
        parts, dim = [first["gradients"][name][0], second["gradients"][name][0]], first["gradients"][name][1]
        if dim is None:
            torch.testing.assert_close(parts[0], parts[1], rtol=0, atol=1e-6, msg=f"copies of {name} differ")
        whole = parts[0] if dim is None else torch.cat(parts, dim)
        # padding grows with the number of ranks and has no gradient
        rows = min(len(whole), len(expected))
        assert torch.count_nonzero(whole[rows:]) == torch.count_nonzero(expected[rows:]) == 0
        scale = float(expected.abs().max())
        torch.testing.assert_close(
            whole[:rows], expected[:rows], rtol=0, atol=max(2e-5 * scale, 1e-7), msg=lambda text, n=name: f"{n}: {text}"
        )
    torch.testing.assert_close(first["logits"], one["logits"], rtol=0, atol=1e-5)
    for name, expected in one["memory"].items():
        parts = [first["memory"][name], second["memory"][name]]
        if not name.endswith("state"):
            found = torch.cat(parts, 2)
        elif sequence_parallel:
            found = torch.cat(parts, 1)
        else:
            found = parts[0]
            assert torch.equal(*parts)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}")


def test_parts_of_a_long_segment_have_the_masks_of_the_whole(ranks: RankPool) -> None:
    """400 tokens on two ranks: the tile of 128 that repeats along the segment begins at neither part's first token."""
    (whole,) = ranks.run(1, mask_of_ones, 400, 1)
    assert 0.4 < float((whole == 0).float().mean()) < 0.6
    assert torch.equal(torch.cat(ranks.run(2, mask_of_ones, 200, 2)), whole)


def mask_of_ones(rank: int, store: str, length: int, tensor: int) -> Tensor:
    """What dropout leaves of ones (length, 2, 3) on one rank."""
    import torch.distributed as dist

    from brt_dist.model.dropout import Dropout
    from brt_dist.parallel.device import choose
    from brt_dist.parallel.layout import Layout, finalize, initialize

    layout = Layout(tensor=tensor, pipeline=1, data=1, micro_batch=2, streams=2, rank=rank)
    initialize(layout, choose("cpu", rank), 120.0, dist.FileStore(store, tensor))
    try:
        return Dropout(0.5, 0, 3, (5, 9), is_split=tensor > 1).activations(torch.ones(length, 2, 3), 1, "site")
    finally:
        finalize()


def read_two_segments(
    rank: int, store: str, config: ModelConfig, tensor: int, sequence_parallel: bool
) -> dict[str, Any]:
    """On one rank: losses of two segments, local gradients of their sum with split dimension, memory afterwards."""
    import torch.distributed as dist

    from brt_dist.model.dropout import Dropout
    from brt_dist.model.model import BlockRecurrentModel, full_logits, loss_sum
    from brt_dist.model.parameters import logical_parameters
    from brt_dist.model.sequence import sum_over_ranks
    from brt_dist.parallel.device import choose
    from brt_dist.parallel.layout import Layout, finalize, initialize

    layout = Layout(tensor=tensor, pipeline=1, data=1, micro_batch=2, streams=2, rank=rank)
    initialize(layout, choose("cpu", rank), 120.0, dist.FileStore(store, tensor))
    try:
        model = BlockRecurrentModel(config, seed=4, sequence_parallel=sequence_parallel)
        memory, losses = model.blank_memory(2), []
        generator = torch.Generator().manual_seed(0)
        for step, starts in enumerate(([[1, 0, 1], [1, 0, 0]], [[0, 0, 0], [0, 1, 0]])):
            tokens = torch.randint(config.vocab_size, (2, 25), generator=generator)
            mask = torch.rand(2, 24, generator=generator) < 0.8
            dropout = Dropout(config.dropout, 0, step, (5, 9), sequence_parallel)
            given = tokens[:, :-1], memory, torch.tensor(starts, dtype=torch.bool), dropout
            if step == 0:  # without logits, as training does it
                nats, memory = model(*given, tokens[:, 1:])
                losses.append(nats.masked_fill(~mask, 0.0).sum())
                continue
            logits, memory = model(*given)
            losses.append(loss_sum(logits, tokens[:, 1:], mask))
        torch.stack(losses).sum().backward()
        if sequence_parallel and tensor > 1:
            whole = [p.local.grad for p in logical_parameters(model) if p.partition_dim is None]
            sum_over_ranks([gradient for gradient in whole if gradient is not None])
        return {
            "losses": torch.stack(losses).detach(),
            "logits": full_logits(logits, config.vocab_size).detach(),
            "gradients": {p.name: (_gradient(p.local), p.partition_dim) for p in logical_parameters(model)},
            "memory": {
                f"layers.{index}.{name}": field for index, layer in enumerate(memory) for name, field in layer.items()
            },
        }
    finally:
        finalize()


def _gradient(parameter: torch.nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
