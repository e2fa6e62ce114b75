"""How the pieces of all ranks become whole tensors in files: who writes which file, and who sends what for it.

The plan is a pure function of what all ranks hold, so every rank makes the same one.  Of a piece that several ranks
hold, one sends it; a file is written by one of the ranks whose pieces are in it.  Both are chosen so that bytes are
spread evenly.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from brt_dist.parallel.pieces import LogicalTensor, Region

Holding = tuple[LogicalTensor, Region]


@dataclass(frozen=True)
class Source:
    """A piece for a file: `index` in the list of pieces of rank `rank`."""

    rank: int
    index: int
    region: Region


@dataclass(frozen=True)
class FilePlan:
    """name: in the checkpoint's folder; writer: a rank; tensors: in the order of the file, each with its pieces."""

    name: str
    writer: int
    tensors: tuple[tuple[LogicalTensor, tuple[Source, ...]], ...]

    @property
    def logical(self) -> list[LogicalTensor]:
        return [tensor for tensor, _ in self.tensors]


@dataclass
class _Loads:
    """Bytes given to each rank so far."""

    bytes: dict[int, int] = field(default_factory=dict)

    def least(self, ranks: Iterable[int], more: int) -> int:
        rank = min(ranks, key=lambda rank: (self.bytes.get(rank, 0), rank))
        self.bytes[rank] = self.bytes.get(rank, 0) + more
        return rank


def plan_files(holdings: Sequence[Sequence[Holding]]) -> list[FilePlan]:
    """The plan for the pieces of all ranks, in the order in which all ranks go through it.

    RuntimeError: the pieces of a tensor are not the whole of it, each element once.
    """
    holders: dict[LogicalTensor, dict[Region, list[tuple[int, int]]]] = {}
    for rank, held in enumerate(holdings):
        for index, (tensor, region) in enumerate(held):
            holders.setdefault(tensor, {}).setdefault(region, []).append((rank, index))
    senders, files = _Loads(), dict[str, list[tuple[LogicalTensor, tuple[Source, ...]]]]()
    for tensor in sorted(holders, key=lambda tensor: tensor.name):
        regions = holders[tensor]
        if sum(region.size for region in regions) != tensor.size:
            raise RuntimeError(f"the pieces of {tensor.name} {tensor.shape} are not the whole of it: {list(regions)}")
        sources = []
        for region in sorted(regions, key=lambda region: (region.box, region.begin)):
            indices = dict(regions[region])
            rank = senders.least(indices, region.size * tensor.dtype.itemsize)
            sources.append(Source(rank, indices[rank], region))
        files.setdefault(file_of(tensor.name), []).append((tensor, tuple(sources)))
    writers, plans = _Loads(), []
    for name, tensors in sorted(files.items(), key=lambda item: -_bytes(item[1])):
        ranks = {source.rank for _, sources in tensors for source in sources}
        plans.append(FilePlan(name, writers.least(ranks, _bytes(tensors)), tuple(tensors)))
    return _interleaved(plans)


def file_of(name: str) -> str:
    """The file of a logical tensor: one for each kind and layer (`weights/layers.3.safetensors`)."""
    kind, _, path = name.partition("/")
    parts = path.replace("/", ".").split(".")
    owner = ".".join(parts[:2]) if parts[0] == "layers" else parts[0]
    return f"{kind}/{owner}.safetensors"


def sent_by(plans: Sequence[FilePlan], rank: int) -> set[int]:
    """Numbers of the pieces that `rank` gives to a file."""
    sources = (source for plan in plans for _, sources in plan.tensors for source in sources)
    return {source.index for source in sources if source.rank == rank}


class Exchange:
    """One passage through the plan on one rank: its pieces go out, the tensors of its own files come in.

    Args:
        values: this rank's pieces by number, on the host; at least those of :func:`sent_by`.
        group: a group of all ranks that works on host memory; used by nobody else meanwhile.
    """

    def __init__(
        self, plans: Sequence[FilePlan], values: Mapping[int, Tensor], rank: int, group: dist.ProcessGroup | None
    ) -> None:
        self._plans, self._values, self._rank, self._group = plans, values, rank, group
        # All at once: whoever waits for a piece finds it on its way, so no order of files can block.
        self._sends = [
            dist.isend(_as_bytes(values[source.index]), plan.writer, group)
            for plan in plans
            if plan.writer != rank
            for _, sources in plan.tensors
            for source in sources
            if source.rank == rank
        ]

    def files(self) -> Iterator[tuple[FilePlan, Iterator[Tensor]]]:
        """The files that this rank writes, each with its tensors in order.  Every tensor must be taken."""
        for plan in self._plans:
            if plan.writer == self._rank:
                yield plan, self._tensors(plan)

    def finish(self) -> None:
        """Wait until everything that was sent has arrived."""
        for send in self._sends:
            if send is not None:
                send.wait()

    def _tensors(self, plan: FilePlan) -> Iterator[Tensor]:
        for tensor, sources in plan.tensors:
            whole = torch.empty(tensor.shape, dtype=tensor.dtype)
            for source in sources:
                if source.rank == self._rank:
                    values = self._values[source.index]
                else:
                    values = torch.empty(source.region.size, dtype=tensor.dtype)
                    dist.recv(_as_bytes(values), source.rank, self._group)
                source.region.put(whole, values)
            yield whole


def _as_bytes(values: Tensor) -> Tensor:
    """Not every backend knows every type."""
    return values.view(torch.uint8)


def _bytes(tensors: Iterable[tuple[LogicalTensor, object]]) -> int:
    return sum(tensor.bytes for tensor, _ in tensors)


def _interleaved(plans: list[FilePlan]) -> list[FilePlan]:
    """First the first file of every writer, then the second, ...: so all of them are busy at the same time."""
    position: dict[int, int] = {}
    keyed = []
    for plan in plans:
        turn = position[plan.writer] = position.get(plan.writer, -1) + 1
        keyed.append((turn, plan.writer, plan))
    return [plan for _, _, plan in sorted(keyed, key=lambda item: item[:2])]
