"""Regions and the plan of a save: however a tensor is cut, its pieces cover it, each element once."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from brt_dist.checkpoint import assembly
from brt_dist.checkpoint.assembly import Exchange, assign_files, file_of, sent_by
from brt_dist.checkpoint.manifest import _FILE_NAME
from brt_dist.parallel.links import Links
from brt_dist.parallel.pieces import LogicalTensor, Region

SHAPES = st.lists(st.integers(1, 6), min_size=1, max_size=4).map(tuple)


@dataclass(frozen=True)
class Cut:
    """A box of a tensor, split over one dimension, and of each part flat ranges."""

    tensor: LogicalTensor
    regions: list[Region]


@st.composite
def cuts(draw: Any) -> Cut:
    shape = draw(SHAPES)
    dim = draw(st.integers(0, len(shape) - 1))
    borders = sorted({0, shape[dim], *draw(st.lists(st.integers(0, shape[dim]), max_size=2))})
    regions = []
    for start, stop in pairwise(borders):
        box = tuple((start, stop) if i == dim else (0, size) for i, size in enumerate(shape))
        whole = Region.of_box(box)
        ends = sorted({0, whole.size, *draw(st.lists(st.integers(0, whole.size), max_size=3))})
        regions += [whole.part(begin, end) for begin, end in pairwise(ends)]
    return Cut(LogicalTensor("weights/embedding.weight", shape, torch.float32), regions)


def numbered(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.arange(torch.Size(shape).numel(), dtype=torch.float32).view(shape)


@given(cuts())
def test_what_is_taken_can_be_put_back(cut: Cut) -> None:
    full = numbered(cut.tensor.shape)
    again = torch.full_like(full, -1)
    for region in cut.regions:
        values = region.take(lambda slices: full[slices])
        assert values.shape == (region.size,)
        region.put(again, values)
    assert torch.equal(again, full)


@given(cuts())
def test_only_the_rows_in_touch_are_read(cut: Cut) -> None:
    full = numbered(cut.tensor.shape)
    for region in cut.regions:
        row = max(full[0].numel(), 1)
        read: list[int] = []
        region.take(lambda slices, read=read: read.append(full[slices].numel()) or full[slices])  # type: ignore
        assert sum(read) < region.size + 2 * row


@given(cuts(), st.integers(1, 4), st.randoms())
def test_each_region_is_sent_by_one_of_its_holders(cut: Cut, ranks: int, random: Any) -> None:
    holdings: list[list[tuple[LogicalTensor, Region]]] = [[] for _ in range(ranks)]
    for region in cut.regions:
        for rank in random.sample(range(ranks), random.randint(1, ranks)):
            holdings[rank].append((cut.tensor, region))
    (plan,) = assign_files(holdings)
    sent = [holdings[rank][index] for rank in range(ranks) for index in sent_by([plan], rank)]
    assert sorted(map(repr, sent)) == sorted(repr((cut.tensor, region)) for region in cut.regions)
    assert holdings[plan.writer], "the writer holds a part"


@given(cuts())
def test_one_rank_assembles_what_it_holds(cut: Cut) -> None:
    full = numbered(cut.tensor.shape)
    plans = assign_files([[(cut.tensor, region) for region in cut.regions]])
    values = {i: region.take(lambda slices: full[slices]) for i, region in enumerate(cut.regions)}
    links = Links(0, 10.0, "127.0.0.1")
    exchange = Exchange(plans, values, 0, links)
    ((_, tensors),) = list(exchange.files())
    (found,) = list(tensors)
    links.close()
    assert torch.equal(found, full)


@pytest.mark.parametrize("regions", [[Region(((0, 4),), 0, 3)], [Region.whole((4,)), Region(((0, 4),), 0, 1)]])
def test_a_gap_or_an_overlap_is_a_defect_that_is_noticed(regions: list[Region]) -> None:
    tensor = LogicalTensor("weights/final_norm.scale", (4,), torch.float32)
    with pytest.raises(RuntimeError, match="do not cover it exactly"):
        assign_files([[(tensor, region) for region in regions]])


def test_bytes_are_spread_over_ranks() -> None:
    layers = [LogicalTensor(f"weights/layers.{i}.mlp.weight", (8, 8), torch.float32) for i in range(8)]
    held = [(layer, Region.whole(layer.shape)) for layer in layers]
    plans = assign_files([held] * 4)
    assert [len(sent_by(plans, rank)) for rank in range(4)] == [2, 2, 2, 2]
    assert sorted(plan.writer for plan in plans[:4]) == [0, 1, 2, 3], "all writers are busy from the start"


def test_a_large_file_is_divided_among_writers_by_sizes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assembly, "FILE_BYTES", 600)
    tensors = [LogicalTensor(f"weights/layers.0.{i}.weight", (8, 8), torch.float32) for i in range(5)]  # 256 bytes
    tensors.append(LogicalTensor("weights/layers.0.9.weight", (32, 8), torch.float32))  # too large for any file
    files = []
    for ranks in (1, 4):
        plans = assign_files([[(tensor, Region.whole(tensor.shape)) for tensor in tensors]] * ranks)
        files.append({plan.name: [tensor.name for tensor in plan.logical] for plan in plans})
        assert len({plan.writer for plan in plans}) == min(ranks, 3)
    assert files[0] == files[1]
    assert {name: len(held) for name, held in files[0].items()} == {
        "weights/layers.0.safetensors": 2,
        "weights/layers.0-2.safetensors": 2,
        "weights/layers.0-3.safetensors": 1,
        "weights/layers.0-4.safetensors": 1,
    }
    assert all(_FILE_NAME.fullmatch(name) for name in files[0])


def test_files_are_named_by_kind_and_layer() -> None:
    assert file_of("weights/layers.3.mlp.up.weight") == "weights/layers.3.safetensors"
    assert file_of("optimizer/layers.3.mlp.up.weight/exp_avg") == "optimizer/layers.3.safetensors"
    assert file_of("memory/layers.3/state") == "memory/layers.3.safetensors"
    assert file_of("optimizer/embedding.weight/exp_avg") == "optimizer/embedding.safetensors"
