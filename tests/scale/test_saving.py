"""Saving with 4,096 ranks: which ranks talk to each other, and how much work planning a save is; and a real save."""

import threading
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from brt_dist.checkpoint.assembly import Exchange, FileAssignment, assign_files, sent_by
from brt_dist.checkpoint.crew import children_of, parent_of
from brt_dist.parallel.layout import Layout
from brt_dist.parallel.links import Links
from brt_dist.parallel.pieces import LogicalTensor, Region
from tests.scale.settings import small
from tests.scale.world import fake_world

TENSOR, PIPELINE, DATA = 8, 8, 64
WORLD = TENSOR * PIPELINE * DATA


def layout(rank: int) -> Layout:
    return Layout(tensor=TENSOR, pipeline=PIPELINE, data=DATA, micro_batch=1, streams=512, rank=rank)


Holding = tuple[LogicalTensor, Region]


def holdings(layers: int, tensor: int, data: int, streams: int) -> list[list[Holding]]:
    """What the ranks of a stage hold, with ZeRO-1: each a range of the flat parameters, and memory of its streams."""
    weights: list[tuple[LogicalTensor, int | None]] = []
    for layer in range(layers):
        for name, rows, split in (("up", 64, 0), ("down", 16, 1), ("norm", 1, None)):
            weights.append((LogicalTensor(f"weights/layers.{layer}.{name}", (rows, 64), torch.float32), split))
    found = []
    for data_rank in range(data):
        for tensor_rank in range(tensor):
            held: list[Holding] = []
            boxes = [_box(weight.shape, split, tensor_rank, tensor) for weight, split in weights]
            total = sum(Region.of_box(box).size for box in boxes)
            share = -(-total // data)
            offset = 0
            for (weight, _), box in zip(weights, boxes, strict=True):
                whole = Region.of_box(box)
                begin, end = data_rank * share - offset, (data_rank + 1) * share - offset
                part = whole.part(max(begin, 0), max(end, 0))
                offset += whole.size
                if part.size:
                    name = weight.name.removeprefix("weights/")
                    held.append((weight, part))
                    for field in ("exp_avg", "exp_avg_sq"):
                        held.append((LogicalTensor(f"optimizer/{name}/{field}", weight.shape, torch.float32), part))
            mine = streams // data
            for layer in range(layers):
                keys = LogicalTensor(f"memory/layers.{layer}/keys", (streams, 4, 8), torch.bfloat16)
                box = ((data_rank * mine, (data_rank + 1) * mine), (0, 4), _box((8,), 0, tensor_rank, tensor)[0])
                held.append((keys, Region.of_box(box)))
                state = LogicalTensor(f"memory/layers.{layer}/state", (streams, 4), torch.bfloat16)
                held.append((state, Region.of_box(((data_rank * mine, (data_rank + 1) * mine), (0, 4)))))
            found.append(held)
    return found


def _box(shape: tuple[int, ...], split: int | None, rank: int, ranks: int) -> tuple[tuple[int, int], ...]:
    box = [(0, size) for size in shape]
    if split is not None:
        part = shape[split] // ranks
        box[split] = (rank * part, (rank + 1) * part)
    return tuple(box)


def peers(plan: list[FileAssignment], first: int) -> dict[int, set[int]]:
    """By rank of a stage, the ranks that it sends to or receives from while it saves."""
    found: dict[int, set[int]] = defaultdict(set)
    for assignment in plan:
        for _, pieces in assignment.tensors:
            for piece in pieces:
                if piece.rank != assignment.writer:
                    found[piece.rank].add(assignment.writer)
                    found[assignment.writer].add(piece.rank)
    return found


def test_a_tree_over_4096_ranks_has_few_branches() -> None:
    parents = {rank: parent_of(layout(rank)) for rank in range(WORLD)}
    children = {rank: children_of(layout(rank)) for rank in range(WORLD)}
    assert [rank for rank, parent in parents.items() if parent is None] == [0]
    for rank, below in children.items():
        assert all(parents[child] == rank for child in below)
    assert sum(map(len, children.values())) == WORLD - 1
    assert max(map(len, children.values())) <= 16 + PIPELINE - 1
    depth = 0
    for rank in range(WORLD):
        steps, above = 0, parents[rank]
        while above is not None:
            steps, above = steps + 1, parents[above]
        depth = max(depth, steps)
    assert depth <= 5
    size = TENSOR * DATA
    for rank, parent in parents.items():  # only the first rank of a stage talks to others
        assert rank == 0 or rank % size == 0 or (parent is not None and parent // size == rank // size)


def test_a_rank_speaks_with_few_others() -> None:
    stage = 3
    first = stage * TENSOR * DATA
    held = holdings(layers=10, tensor=TENSOR, data=DATA, streams=512)
    plan = assign_files(held, first)
    assert {assignment.writer // (TENSOR * DATA) for assignment in plan} == {stage}
    speaks = peers(plan, first)
    files = len(plan)
    writers = {assignment.writer for assignment in plan}
    assert len(writers) == files  # no rank writes two files while others write none
    for rank, others in speaks.items():
        assert all(other // (TENSOR * DATA) == stage for other in others)
        if rank not in writers:  # to the writers of the files that it holds a part of
            kept = {(tensor.name.split("/")[0], tensor.name.split(".")[1][0]) for tensor, _ in held[rank - first]}
            assert len(others) <= len(kept)
    assert sum(map(len, speaks.values())) / len(speaks) < 64


def test_planning_is_linear_in_the_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 4,096 ranks in one stage, as of 512: each holding is looked at a fixed number of times."""
    hashed = Counter[str]()
    hash_region, hash_tensor = Region.__hash__, LogicalTensor.__hash__

    def counting(kind: str, function: Any) -> Any:
        def call(self: Any) -> int:
            hashed[kind] += 1
            return int(function(self))

        return call

    monkeypatch.setattr(Region, "__hash__", counting("region", hash_region))
    monkeypatch.setattr(LogicalTensor, "__hash__", counting("tensor", hash_tensor))
    costs = []
    for data in (64, 512):
        hashed.clear()
        held = holdings(layers=4, tensor=8, data=data, streams=512)
        count = sum(map(len, held))
        plan = assign_files(held)
        assert sum(len(sent_by(plan, rank)) for rank in (0, 1)) > 0
        costs.append(sum(hashed.values()) / count)
    assert costs[1] <= 1.1 * costs[0] and costs[1] < 5


def test_memory_of_a_rank_is_one_piece_for_each_field_of_a_layer() -> None:
    for micro_batches in (2, 16):
        with fake_world(small({"data": 2}, micro_batches=micro_batches), 1) as world, world.engine() as engine:
            pieces = [piece for piece in engine.pieces() if piece.tensor.name.startswith("memory/")]
            fields = {(layer, field) for layer, _, field, _ in engine.memory.tensors()}
            assert len(pieces) == len(fields)
            for piece in pieces:
                assert piece.region.box[0] == (micro_batches, 2 * micro_batches)  # streams of the second rank
                assert len(piece.on_host()) == piece.region.size
                assert 1 + len(piece.more) == micro_batches


def test_megatron_makes_no_groups_for_the_host() -> None:
    with fake_world(small({"tensor": 4, "pipeline": 2, "data": 4})) as world, world.engine():
        assert {group.backend for group in world.groups} & {"gloo"} == set()


@pytest.fixture
def links() -> Iterator[list[Links]]:
    found = [Links(rank, 30.0, "127.0.0.1") for rank in range(8)]
    for one in found:
        one.meet({rank: other.address for rank, other in enumerate(found)})
    yield found
    for one in found:
        one.close()


def test_what_is_planned_can_be_carried_out(links: list[Links]) -> None:
    """Eight ranks, as threads, whose pieces are larger than what connections buffer."""
    held = holdings(layers=3, tensor=2, data=4, streams=4096)
    plan = assign_files(held)
    tensors = {tensor.name: tensor for own in held for tensor, _ in own}
    truth = {
        name: torch.randint(0, 100, tensor.shape, generator=torch.Generator().manual_seed(len(name))).to(tensor.dtype)
        for name, tensor in tensors.items()
    }
    found: dict[str, torch.Tensor] = {}

    def rank(number: int) -> None:
        values = {}
        for index in sent_by(plan, number):
            tensor, region = held[number][index]
            values[index] = region.take(lambda slices, tensor=tensor: truth[tensor.name][slices]).clone()  # type: ignore
        exchange = Exchange(plan, values, number, links[number])
        for assignment, whole in exchange.files():
            found.update(zip((tensor.name for tensor in assignment.logical), whole, strict=True))
        exchange.finish()

    threads = [threading.Thread(target=rank, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found.keys() == truth.keys()
    for name, value in truth.items():
        assert torch.equal(found[name], value), name
    speaks = peers(plan, 0)
    assert sum(one.connections for one in links) <= 2 * sum(map(len, speaks.values()))
