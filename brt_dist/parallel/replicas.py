"""Compares the copies of a weight that several ranks hold; they must be equal bit for bit.

Data parallel ranks hold the same weights, tensor parallel ranks the same norms and biases, and the first and last stage
of a pipeline the same token embedding.  Each rank updates its own copies.  If one ever differs, because of a faulty
device or a sum in another order, it stays different, and the run is no longer what its checkpoints say.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from brt_dist.model.model import EMBEDDING
from brt_dist.parallel.checksum import checksum, odd, signed
from brt_dist.parallel.device import Device
from brt_dist.parallel.layout import Layout
from brt_dist.parallel.state import HeldWeight


@dataclass(frozen=True)
class Drift:
    """A weight whose copies differ.

    Attributes:
        weight: its logical name, and which of its values.
        ranks: those whose values differ from the majority's.
        others: the ranks with which they were compared.
    """

    weight: str
    ranks: tuple[int, ...]
    others: tuple[int, ...]


@dataclass(frozen=True)
class _Sum:
    """The checksum of a piece: its copy, rank and elements."""

    weight: str
    copy: tuple[int, int | None]
    """stage and tensor parallel rank; the latter None for a part that only this tensor parallel rank has"""
    part: int | None
    rank: int
    begin: int
    end: int
    value: int


class Replicas:
    """The weights of one rank, and which other ranks hold copies of them.

    Args:
        layout: of this rank.
        held: returns what this rank holds.
    """

    def __init__(self, layout: Layout, held: Callable[[], Iterable[HeldWeight]], device: Device) -> None:
        self._layout, self._held, self._device = layout, held, device.torch

    def differ(self) -> bool:
        """Whether any two copies differ.  Collective: one all-reduce of one number, whatever the model and the world.

        Of n copies the first counts n - 1 times and each of the others -1 times, so the sum of equal ones is zero.
        """
        total = torch.zeros((), dtype=torch.int64, device=self._device)
        for one, copies, is_first in self._copied():
            factor = signed((copies - 1 if is_first else -1) * odd(f"{one.name}/{self._part(one)}"))
            total += (checksum(one.values, one.region.begin) * factor).to(self._device)
        dist.all_reduce(total)
        return bool(total)

    def find(self) -> list[Drift]:
        """Which copies differ.  Collective: gathers the checksums of all ranks; for when :meth:`differ` says so."""
        mine = [self._sum(one) for one, *_ in self._copied()]
        everyone: list[list[_Sum]] = [[] for _ in range(self._layout.world_size)]
        dist.all_gather_object(everyone, mine)
        return differing([one for sums in everyone for one in sums])

    def _copied(self) -> Iterator[tuple[HeldWeight, int, bool]]:
        """The pieces that other ranks hold too; how many copies there are, and whether this is the first of them."""
        layout = self._layout
        for one in self._held():
            is_whole = one.parameter.partition_dim is None
            is_tied = layout.pipeline > 1 and one.parameter.name.startswith(f"{EMBEDDING}.")
            copies, is_first = 1, True
            for count, place, is_copied in (
                (layout.data, layout.data_rank, one.on_every_data_rank),
                (layout.tensor, layout.tensor_rank, is_whole),
                (2, layout.stage, is_tied),
            ):
                if is_copied:
                    copies, is_first = copies * count, is_first and place == 0
            if copies > 1:
                yield one, copies, is_first

    def _part(self, one: HeldWeight) -> int | None:
        """Which part of the weight this is, where tensor parallelism splits it."""
        return None if one.parameter.partition_dim is None else self._layout.tensor_rank

    def _sum(self, one: HeldWeight) -> _Sum:
        layout, region = self._layout, one.region
        value = int(checksum(one.values, region.begin))
        copy = (layout.stage, layout.tensor_rank)
        return _Sum(one.name, copy, self._part(one), layout.rank, region.begin, region.end, value)


def differing(sums: Sequence[_Sum]) -> list[Drift]:
    """The weights whose copies have different checksums, and the ranks that hold the minority's copies."""
    found = []
    by_weight: dict[tuple[str, int | None], list[_Sum]] = defaultdict(list)
    for one in sums:
        by_weight[one.weight, one.part].append(one)
    for (weight, _), held in by_weight.items():
        drift = _of_equal_pieces(held) or _of_whole_copies(held)
        if drift is not None:
            found.append(Drift(weight, *drift))
    return found


_Ranks = tuple[tuple[int, ...], tuple[int, ...]]


def _of_equal_pieces(held: Sequence[_Sum]) -> _Ranks | None:
    """Ranks that hold the same elements, with different values."""
    for place in sorted({(one.begin, one.end) for one in held}):
        ranks = _minority([((one.rank,), one.value) for one in held if (one.begin, one.end) == place])
        if ranks is not None:
            return ranks
    return None


def _of_whole_copies(held: Sequence[_Sum]) -> _Ranks | None:
    """Copies whose pieces add up to different sums: ZeRO cuts the token embedding differently on the two stages."""
    copies: dict[tuple[int, int | None], dict[tuple[int, int], _Sum]] = defaultdict(dict)
    for one in held:
        copies[one.copy][one.begin, one.end] = one
    pieces = [list(copy.values()) for copy in copies.values()]
    return _minority([(tuple(one.rank for one in copy), signed(sum(one.value for one in copy))) for copy in pieces])


def _minority(holders: Sequence[tuple[tuple[int, ...], int]]) -> _Ranks | None:
    """Ranks whose value is not the most frequent (of equally frequent ones, the first), and the others."""
    counts = Counter(value for _, value in holders)
    if len(counts) < 2:
        return None
    usual = counts.most_common(1)[0][0]
    ranks = sorted(rank for ranks, value in holders if value != usual for rank in ranks)
    return tuple(ranks), tuple(sorted(rank for ranks, value in holders if value == usual for rank in ranks))
