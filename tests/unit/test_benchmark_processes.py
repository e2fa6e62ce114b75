"""How `benchmarks/processes.py` separates waiting for another rank from moving data."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from benchmarks.waiting import Call, Share, shares, watched

GROUP = ("group", "0")


def test_a_rank_waits_until_the_last_one_comes() -> None:
    early, late = [Call(GROUP, 1.0, (1.0, 5.0))], [Call(GROUP, 4.0, (4.0, 5.5))]
    assert shares([early, late]) == [Share(waiting=3.0, moving=1.0), Share(waiting=0.0, moving=1.5)]


def test_what_was_started_before_only_counts_while_it_blocks() -> None:
    started, other = [Call(GROUP, 0.0, (6.0, 7.0))], [Call(GROUP, 2.0, (2.0, 2.5))]
    assert shares([started, other]) == [Share(waiting=0.0, moving=1.0), Share(waiting=0.0, moving=0.5)]


def test_calls_of_a_channel_belong_together_in_their_order() -> None:
    down, up = ("from and to", "0", "1"), ("from and to", "1", "0")
    first = [Call(down, 0.0, (0.0, 0.25)), Call(up, 1.0, (1.0, 4.0)), Call(down, 5.0, (5.0, 5.25))]
    second = [Call(down, 0.0, (0.0, 0.5)), Call(up, 3.0, (3.0, 3.5)), Call(down, 4.0, (4.0, 6.0))]
    assert shares([first, second]) == [Share(waiting=2.0, moving=1.5), Share(waiting=1.0, moving=2.0)]


def test_calls_of_a_lonely_rank_are_left_out_and_functions_put_back(tmp_path: Path) -> None:
    original = dist.all_reduce
    dist.init_process_group("gloo", store=dist.FileStore(f"{tmp_path}/store", 1), rank=0, world_size=1)
    try:
        calls: list[Call] = []
        with watched(calls), pytest.raises(ZeroDivisionError):
            assert dist.all_reduce is not original
            dist.all_reduce(torch.ones(1))
            raise ZeroDivisionError
        assert not calls and dist.all_reduce is original
    finally:
        dist.destroy_process_group()
