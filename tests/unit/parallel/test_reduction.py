"""Gradients reduced during the backward pass, on four ranks that are threads of this process."""

import threading

import pytest
import torch
import torch.distributed as dist
from torch.testing._internal.distributed import multi_threaded_pg

from brt_dist.parallel.reduction import Bucket, Reduction

RANKS, MICRO_BATCHES, STEPS = 4, 3, 2
SIZES = ((5, 3), (2,))  # parameters of two buckets


def values(rank: int, step: int, micro_batch: int, place: int, size: int) -> torch.Tensor:
    """What multiplies a parameter in the loss, which is its gradient; sums of it are exact, in bf16 too."""
    count = torch.arange(size, dtype=torch.float32)
    return (count + 2 * rank + micro_batch + place + 3 * step) % 8


def is_unused(rank: int, micro_batch: int, place: int) -> bool:
    return (rank, micro_batch, place) == (1, MICRO_BATCHES - 1, 0)


def own_gradients(rank: int, dtype: torch.dtype, scatter: bool, is_late: bool) -> list[torch.Tensor]:
    """Means over ranks as a rank holds them after each step, by step and bucket.

    On rank 1 the first parameter gets no gradient in the last micro-batch, so its bucket is complete only in the end.
    """
    parameters = [[torch.nn.Parameter(torch.zeros(size)) for size in sizes] for sizes in SIZES]
    buckets = []
    for held in parameters:
        whole = torch.zeros(-(-sum(p.numel() for p in held) // RANKS) * RANKS)
        start = 0
        for parameter in held:
            part = whole[start : start + parameter.numel()]
            parameter.register_post_accumulate_grad_hook(lambda p, part=part: _into(part, p))
            start += parameter.numel()
        buckets.append(Bucket(held, whole, whole.chunk(RANKS)[rank], is_late))
    reduction = Reduction(buckets, MICRO_BATCHES, dist.group.WORLD, dtype, scatter)
    found = []
    for step in range(STEPS):
        for micro_batch in range(MICRO_BATCHES):
            flat = [p for held in parameters for p in held]
            terms = [
                (p * values(rank, step, micro_batch, i, p.numel())).sum()
                for i, p in enumerate(flat)
                if not is_unused(rank, micro_batch, i)
            ]
            sum(terms).backward()  # type: ignore[union-attr]
        reduction.finish()
        found += [bucket.own.clone() for bucket in buckets]
        for bucket in buckets:
            bucket.whole.zero_()
    reduction.close()
    return found


def _into(part: torch.Tensor, parameter: torch.Tensor) -> None:
    part += parameter.grad
    parameter.grad = None


@pytest.mark.parametrize("is_late", [False, True])
@pytest.mark.parametrize(("dtype", "scatter"), [(torch.float32, True), (torch.float32, False), (torch.bfloat16, True)])
def test_each_rank_has_the_mean_of_what_it_updates(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, scatter: bool, is_late: bool
) -> None:
    """tests/parallel/test_reduction.py does so with processes."""
    # the threads' reduce-scatter, unlike NCCL's and gloo's, cannot write into what it reads
    in_place = dist.reduce_scatter_single
    monkeypatch.setattr(dist, "reduce_scatter_single", lambda own, whole, **how: in_place(own, whole.clone(), **how))
    found: dict[int, list[torch.Tensor]] = {}

    def run(rank: int) -> None:
        dist.init_process_group("threaded", rank=rank, world_size=RANKS, store=store)
        found[rank] = own_gradients(rank, dtype, scatter, is_late)
        dist.destroy_process_group()

    store = dist.HashStore()
    multi_threaded_pg._install_threaded_pg()
    torch._C._distributed_c10d._set_thread_isolation_mode(True)
    try:
        threads = [threading.Thread(target=run, args=(rank,)) for rank in range(RANKS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    finally:
        torch._C._distributed_c10d._set_thread_isolation_mode(False)
        multi_threaded_pg._uninstall_threaded_pg()
    for step in range(STEPS):
        for place, sizes in enumerate(SIZES):
            first = sum(len(before) for before in SIZES[:place])
            sums = [
                sum(
                    values(r, step, m, first + i, size)
                    for r in range(RANKS)
                    for m in range(MICRO_BATCHES)
                    if not is_unused(r, m, first + i)
                )
                for i, size in enumerate(sizes)
            ]
            joined = torch.cat([found[rank][step * len(SIZES) + place] for rank in range(RANKS)])
            expected = torch.cat(sums) / RANKS  # type: ignore[arg-type]
            assert torch.equal(joined[: len(expected)], expected) and not joined[len(expected) :].any()
