"""Checksums of weights, and what they say about copies on other ranks."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from brt_dist.config.guards import GuardsConfig
from brt_dist.errors import PlatformError
from brt_dist.events import DriftEvent
from brt_dist.parallel import checksum as module
from brt_dist.parallel import replicas
from brt_dist.parallel.checksum import checksum
from brt_dist.parallel.device import Device
from brt_dist.parallel.layout import Layout
from brt_dist.parallel.pieces import Region
from brt_dist.parallel.replicas import Drift, Replicas, differing
from brt_dist.parallel.state import HeldWeight
from brt_dist.training.hooks.replica_guard import ReplicaGuard

ROWS, COLUMNS = 6, 8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_checksums_of_parts_add_up_and_every_bit_counts(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    monkeypatch.setattr(module, "_CHUNK", 16)
    values = torch.linspace(-3, 3, 50).to(dtype)
    whole = checksum(values)
    for cut in (0, 1, 15, 16, 17, 49):
        assert checksum(values[:cut]) + checksum(values[cut:], cut) == whole
    bits = values.view({2: torch.int16, 4: torch.int32}[dtype.itemsize])
    changed = set()
    for place, bit in product((0, 3, 16, 49), range(8 * dtype.itemsize)):
        bits[place] ^= 1 << bit if bit < 8 * dtype.itemsize - 1 else -(1 << bit)
        changed.add(int(checksum(values)))
        bits[place] ^= 1 << bit if bit < 8 * dtype.itemsize - 1 else -(1 << bit)
    assert len(changed | {int(whole)}) == 4 * 8 * dtype.itemsize + 1
    assert checksum(values.flip(0)) != whole and checksum(values) == whole


@dataclass
class Ranks:
    """All ranks of a layout: a table whose rows are split, tied over the stages, and a norm in each stage."""

    tensor: int
    pipeline: int
    data: int
    zero_stage: int

    def __post_init__(self) -> None:
        world = self.tensor * self.pipeline * self.data
        self.layouts = [Layout(self.tensor, self.pipeline, self.data, 1, self.data, rank) for rank in range(world)]
        self.held = [list(self._held(layout)) for layout in self.layouts]
        self.totals: list[Tensor] = []

    def _held(self, layout: Layout) -> Iterator[HeldWeight]:
        rows = ROWS // self.tensor
        names = {"embedding.weight": 0, f"layers.{layout.stage}.norm.weight": None}
        for number, (name, split) in enumerate(names.items()):
            whole = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(number))
            local = whole if split is None else whole[layout.tensor_rank * rows : (layout.tensor_rank + 1) * rows]
            parameter: Any = SimpleNamespace(name=name, partition_dim=split)
            region = Region.of_box(((0, len(local)), (0, COLUMNS)))
            half, is_split = local.flatten().clone(), self.zero_stage == 3
            working = self._range(layout, region) if is_split else region
            yield HeldWeight(name, parameter, working, half.bfloat16()[working.begin : working.end], not is_split)
            if self.zero_stage:
                # ZeRO cuts the tied table elsewhere on each stage
                part = self._range(layout, region, layout.stage)
                yield HeldWeight(f"{name} (master values)", parameter, part, half[part.begin : part.end], False)

    def _range(self, layout: Layout, region: Region, shift: int = 0) -> Region:
        cuts = [0, *(region.size * place // self.data + shift for place in range(1, self.data)), region.size]
        return region.part(cuts[layout.data_rank], cuts[layout.data_rank + 1])

    def look(self, monkeypatch: pytest.MonkeyPatch) -> tuple[bool, list[Drift]]:
        """What all ranks together find."""
        totals: list[Tensor] = []
        monkeypatch.setattr(replicas.dist, "all_reduce", totals.append)
        every = [Replicas(a, lambda b=b: b, Device("cpu", 0)) for a, b in zip(self.layouts, self.held, strict=True)]
        for one in every:
            one.differ()
        sums = [one._sum(held) for one in every for held, *_ in one._copied()]
        return bool(sum(totals)), differing(sums)


LAYOUTS = [(1, 1, 2, 0), (2, 1, 2, 0), (1, 1, 2, 1), (2, 2, 3, 1), (2, 1, 1, 1), (1, 2, 1, 1), (2, 1, 2, 3)]


@pytest.mark.parametrize("sizes", LAYOUTS)
def test_one_ulp_on_one_rank_is_found_and_named(
    monkeypatch: pytest.MonkeyPatch, sizes: tuple[int, int, int, int]
) -> None:
    ranks = Ranks(*sizes)
    assert ranks.look(monkeypatch) == (False, [])
    tried = 0
    for rank, held in enumerate(ranks.held):
        for one, copies, _ in Replicas(ranks.layouts[rank], lambda held=held: held, Device("cpu", 0))._copied():
            bits = one.values.view({2: torch.int16, 4: torch.int32}[one.values.element_size()])
            bits[-1] += 1
            differ, found = ranks.look(monkeypatch)
            assert differ and [drift.weight for drift in found] == [one.name]
            if one.on_every_data_rank and copies > 2:
                assert found[0].ranks == (rank,)
            assert rank in (*found[0].ranks, *found[0].others)
            bits[-1] -= 1
            tried += 1
    assert tried and ranks.look(monkeypatch) == (False, [])


class Found:
    """Replicas whose copies on rank 3 differ."""

    def __init__(self, drifts: list[Drift]) -> None:
        self.drifts, self.looks = drifts, 0

    def differ(self) -> bool:
        self.looks += 1
        return True

    def find(self) -> list[Drift]:
        return self.drifts


def guard(drifts: list[Drift], **settings: Any) -> tuple[ReplicaGuard, Found, list[DriftEvent]]:
    told: list[DriftEvent] = []
    config = SimpleNamespace(run=SimpleNamespace(guards=GuardsConfig.model_validate({"replica_every": 2, **settings})))
    engine: Any = SimpleNamespace(config=config, layout=None, held_weights=None, device=SimpleNamespace(torch="cpu"))
    hook, found = ReplicaGuard(engine, told.append), Found(drifts)  # type: ignore[arg-type]
    hook._replicas = found  # type: ignore[assignment]
    return hook, found, told


def step(number: int) -> Any:
    return SimpleNamespace(number=number)


def test_the_guard_names_weight_and_ranks_and_ends_the_attempt() -> None:
    drifts = [Drift("final_norm.weight", (3,), (0, 1, 2)), Drift("layers.0.norm.weight", (3,), (0, 1, 2))]
    hook, found, told = guard(drifts)
    hook.after_step(step(1))
    assert not found.looks
    with pytest.raises(PlatformError, match=r"step 2: final_norm.weight differs between ranks 3 and 0, 1, 2 \(1 other"):
        hook.after_step(step(2))
    assert told[0] == DriftEvent(step=2, weight="final_norm.weight", ranks=(3,), others=(0, 1, 2))
    assert len(told) == 2

    hook, _, told = guard(drifts, on_drift="report")
    hook.after_step(step(2))
    assert len(told) == 2
    hook, _, told = guard([])  # at the second look, all are equal
    hook.after_step(step(2))
    assert told == [DriftEvent(step=2)]
    hook, found, _ = guard(drifts, replica_every=0)
    hook.after_step(step(2))
    assert not found.looks
