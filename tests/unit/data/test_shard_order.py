"""Shuffling by shards: every document once per epoch, and few shards at a time."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from brt_dist.data.epoch_order import EpochOrder
from brt_dist.data.shard_order import ShardOrder
from brt_dist.data.stream_schedule import StreamSchedule

SIZES = st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(any)


@given(sizes=SIZES, together=st.integers(1, 14), seed=st.integers(0, 2**40), epoch=st.integers(0, 3))
def test_every_epoch_has_every_document_once(sizes: list[int], together: int, seed: int, epoch: int) -> None:
    shards = np.array(sizes)
    documents = int(shards.sum())
    order = ShardOrder(shards, seed, together)(epoch * documents + np.arange(documents))
    assert sorted(order.tolist()) == list(range(documents))


@given(sizes=SIZES, together=st.integers(1, 14), seed=st.integers(0, 2**40))
def test_a_document_does_not_depend_on_what_was_asked_before(sizes: list[int], together: int, seed: int) -> None:
    shards = np.array(sizes)
    ordinals = np.arange(3 * int(shards.sum()))
    order = ShardOrder(shards, seed, together)
    at_once = order(ordinals)
    assert [int(order(np.array([ordinal]))[0]) for ordinal in ordinals[::-1]] == at_once[::-1].tolist()


def test_only_the_shards_of_a_group_are_read_at_a_time() -> None:
    shards = np.full(40, 25)
    order = ShardOrder(shards, 3, together=4)(np.arange(2000)).reshape(2, 10, 100)  # epochs, groups, documents
    found = [[set((group // 25).tolist()) for group in epoch] for epoch in order]
    assert all(len(group) == 4 for epoch in found for group in epoch)
    assert found[0] != found[1]  # each epoch has other groups
    assert all(not np.array_equal(np.sort(group), group) for group in order[0])
    everywhere = EpochOrder(1000, 3)(np.arange(100))
    assert len(set((everywhere // 25).tolist())) > 30  # the order of all documents touches nearly every shard


def test_documents_of_a_group_are_shuffled_uniformly() -> None:
    """The first of 6 documents in two shards, over 3,000 seeds: each about 500 times."""
    shards = np.array([2, 4])
    first = [int(ShardOrder(shards, seed, together=2)(np.array([0]))[0]) for seed in range(3000)]
    counts = np.bincount(first, minlength=6)
    assert ((counts > 400) & (counts < 600)).all(), counts


@pytest.mark.parametrize("together", [0, 2])
def test_a_schedule_keeps_its_order_when_it_is_resized(together: int) -> None:
    lengths, shards = np.full(60, 8), np.full(6, 10)
    shape = {"segment": 8, "window": 4, "seed": 5, "shards": [shards], "together": together}
    schedule = StreamSchedule(lengths, streams=4, **shape)
    plan, cursor = schedule.step(schedule.start())
    assert len(set((plan.document // 10).ravel().tolist())) <= (together or 6)
    plan, _ = schedule.resized(6).step(cursor.resized(6))
    expected = schedule.deal.look_up(np.zeros(6, int), np.arange(4, 10))[0]
    assert sorted(plan.document[:, 0].tolist()) == sorted(expected.tolist())
