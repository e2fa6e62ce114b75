"""Assembles the pieces of all ranks into whole tensors in files.

Which rank writes which file, and which ranks send what for it, is a pure function of what the ranks of a pipeline stage
hold, so each of them computes the same assignment.  If several ranks hold a piece, one of them sends it; a file is
written by one of the ranks whose pieces are in it.  Both are chosen to spread the bytes evenly.
"""

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from brt_dist.parallel.links import LinkError, Links
from brt_dist.parallel.pieces import LogicalTensor, Region

Holding = tuple[LogicalTensor, Region]

FILE_BYTES = 1 << 30  # bytes of tensors in a file; a larger tensor gets its own file


@dataclass(frozen=True)
class SentPiece:
    """A piece that goes into a file.

    Attributes:
        rank: the rank that sends it.
        index: its index in the list of that rank's pieces.
        region: where it goes in the logical tensor.
    """

    rank: int
    index: int
    region: Region


@dataclass(frozen=True)
class FileAssignment:
    """A file of a checkpoint and the ranks that contribute to it.

    Attributes:
        name: of the file, in the checkpoint's folder.
        writer: the rank that writes it.
        tensors: in the order of the file, each with its pieces.
    """

    name: str
    writer: int
    tensors: tuple[tuple[LogicalTensor, tuple[SentPiece, ...]], ...]

    @property
    def logical(self) -> list[LogicalTensor]:
        return [tensor for tensor, _ in self.tensors]


@dataclass
class _Loads:
    """Bytes assigned to each rank so far."""

    bytes: dict[int, int] = field(default_factory=dict)

    def least(self, ranks: Iterable[int], more: int) -> int:
        rank = min(ranks, key=lambda rank: (self.bytes.get(rank, 0), rank))
        self.bytes[rank] = self.bytes.get(rank, 0) + more
        return rank


def assign_files(holdings: Sequence[Sequence[Holding]], first: int = 0) -> list[FileAssignment]:
    """Assign the pieces of all ranks of a stage to files.

    Args:
        holdings: for each rank, the tensor and region of each of its pieces.
        first: number of the first of these ranks.

    Returns:
        The files, in the order in which all ranks process them.

    Raises:
        RuntimeError: the pieces of a tensor do not cover each of its elements exactly once.
    """
    holders: dict[LogicalTensor, dict[Region, list[tuple[int, int]]]] = {}
    for rank, held in enumerate(holdings, first):
        for index, (tensor, region) in enumerate(held):
            holders.setdefault(tensor, {}).setdefault(region, []).append((rank, index))
    senders, files = _Loads(), dict[str, list[tuple[LogicalTensor, tuple[SentPiece, ...]]]]()
    for tensor in sorted(holders, key=lambda tensor: tensor.name):
        regions = holders[tensor]
        if sum(region.size for region in regions) != tensor.size:
            raise RuntimeError(f"the pieces of {tensor.name} {tensor.shape} do not cover it exactly: {list(regions)}")
        pieces = []
        for region in sorted(regions, key=lambda region: (region.box, region.begin)):
            indices = dict(regions[region])
            rank = senders.least(indices, region.size * tensor.dtype.itemsize)
            pieces.append(SentPiece(rank, indices[rank], region))
        files.setdefault(file_of(tensor.name), []).append((tensor, tuple(pieces)))
    writers, assignments = _Loads(), []
    for name, tensors in sorted(_divided(files), key=lambda item: -_bytes(item[1])):
        ranks = {piece.rank for _, pieces in tensors for piece in pieces}
        assignments.append(FileAssignment(name, writers.least(ranks, _bytes(tensors)), tuple(tensors)))
    return _interleaved(assignments)


def file_of(name: str) -> str:
    """The file that a logical tensor belongs to: one per kind and layer (`weights/layers.3.safetensors`).

    What does not fit goes to `weights/layers.3-2.safetensors` and so on.
    """
    kind, _, path = name.partition("/")
    parts = path.replace("/", ".").split(".")
    owner = ".".join(parts[:2]) if parts[0] == "layers" else parts[0]
    return f"{kind}/{owner}.safetensors"


_Tensors = list[tuple[LogicalTensor, tuple[SentPiece, ...]]]


def _divided(files: Mapping[str, _Tensors]) -> Iterator[tuple[str, _Tensors]]:
    """Split large files into several, which several ranks write at once; only sizes decide where they are split."""
    for name, tensors in files.items():
        parts: list[_Tensors] = []
        room = -1
        for item in tensors:
            if item[0].bytes > room:
                parts.append([])
                room = FILE_BYTES
            parts[-1].append(item)
            room -= item[0].bytes
        for number, part in enumerate(parts):
            yield (name.replace(".safetensors", f"-{number + 1}.safetensors") if number else name), part


def sent_by(assignments: Sequence[FileAssignment], rank: int) -> set[int]:
    """Indices of the pieces that `rank` sends."""
    pieces = (piece for assignment in assignments for _, pieces in assignment.tensors for piece in pieces)
    return {piece.index for piece in pieces if piece.rank == rank}


class Exchange:
    """Sends this rank's pieces and receives the tensors of the files that it writes.

    A separate thread sends pieces in the order of the files, and they are received in that order.  So the first piece
    that is not yet delivered can always be delivered: no order of files can deadlock.

    Args:
        assignments: the files, as assigned.
        values: this rank's pieces by index, on the host; at least those of :func:`sent_by`.
        rank: this rank.
        links: to the other ranks; nothing else may use them meanwhile.
    """

    def __init__(
        self, assignments: Sequence[FileAssignment], values: Mapping[int, Tensor], rank: int, links: Links
    ) -> None:
        self._assignments, self._values, self._rank, self._links = assignments, values, rank, links
        self._problem: LinkError | None = None
        self._sender = threading.Thread(target=self._send, name="checkpoint-send", daemon=True)
        self._sender.start()

    def files(self) -> Iterator[tuple[FileAssignment, Iterator[Tensor]]]:
        """The files that this rank writes, each with its tensors in order.  Consume every tensor.

        Raises:
            LinkError: another rank is gone, or does not respond.
        """
        for assignment in self._assignments:
            if assignment.writer == self._rank:
                yield assignment, self._tensors(assignment)

    def finish(self) -> None:
        """Wait until everything is sent.

        Raises:
            LinkError: another rank is gone, or does not respond.
        """
        self._sender.join()
        if self._problem is not None:
            raise self._problem

    def _send(self) -> None:
        try:
            for assignment in self._assignments:
                for _, pieces in assignment.tensors if assignment.writer != self._rank else ():
                    for piece in pieces:
                        if piece.rank == self._rank:
                            self._links.send(_as_bytes(self._values[piece.index]), assignment.writer)
        except LinkError as error:
            self._problem = error

    def _tensors(self, assignment: FileAssignment) -> Iterator[Tensor]:
        for tensor, pieces in assignment.tensors:
            whole = torch.empty(tensor.shape, dtype=tensor.dtype)
            for piece in pieces:
                if piece.rank == self._rank:
                    values = self._values[piece.index]
                else:
                    values = torch.empty(piece.region.size, dtype=tensor.dtype)
                    self._links.receive_into(_as_bytes(values), piece.rank)
                piece.region.put(whole, values)
            yield whole


def _as_bytes(values: Tensor) -> memoryview:
    return values.view(torch.uint8).numpy().data


def _bytes(tensors: Iterable[tuple[LogicalTensor, object]]) -> int:
    return sum(tensor.bytes for tensor, _ in tensors)


def _interleaved(assignments: list[FileAssignment]) -> list[FileAssignment]:
    """The first file of every writer, then the second of each, ..., so that all writers are busy at the same time."""
    position: dict[int, int] = {}
    keyed = []
    for assignment in assignments:
        turn = position[assignment.writer] = position.get(assignment.writer, -1) + 1
        keyed.append((turn, assignment.writer, assignment))
    return [assignment for _, _, assignment in sorted(keyed, key=lambda item: item[:2])]
