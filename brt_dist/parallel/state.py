"""The state of one rank: weights, optimizer state and stream memory as pieces of logical tensors, out and in."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from brt_dist.config.schema import Config
from brt_dist.model.model import EMBEDDING
from brt_dist.model.parameters import LogicalParameter
from brt_dist.parallel.deepspeed_internals import master_values, renew_working_weights, shard
from brt_dist.parallel.layout import Layout
from brt_dist.parallel.optimizer_state import Fragment, OptimizerState
from brt_dist.parallel.pieces import LogicalTensor, Piece, Read, Region
from brt_dist.parallel.stream_memory import StreamMemory


@dataclass(frozen=True)
class HeldWeight:
    """What a rank holds of a weight: the values that the forward pass uses, or with ZeRO the float32 master values.

    Attributes:
        name: of the weight, and which of the two it is.
        parameter: the weight.
        region: of it, without the padding of the vocabulary.
        values: (region.size,), a view.
        on_every_data_rank: whether all data parallel ranks hold this region, rather than each a part of it.
    """

    name: str
    parameter: LogicalParameter
    region: Region
    values: Tensor
    on_every_data_rank: bool


class RankState:
    """Where DeepSpeed keeps what this rank trains.

    Args:
        parameters: of this rank, in the order in which the optimizer has them.
        optimizer: ours, inside DeepSpeed's.
        engine: DeepSpeed's.
    """

    def __init__(
        self,
        config: Config,
        layout: Layout,
        parameters: Sequence[LogicalParameter],
        optimizer: torch.optim.Optimizer,
        engine: Any,
    ) -> None:
        self._config, self._layout = config, layout
        self._parameters, self._optimizer = parameters, optimizer
        self._optimizer_state = OptimizerState(config.optimizer, optimizer, layout)
        self._zero = engine.optimizer if config.parallel.zero_stage else None

    @property
    def updates(self) -> int:
        """Optimizer updates so far."""
        return self._optimizer_state.updates

    def pieces(self, memory: StreamMemory) -> list[Piece]:
        """Everything that changes in training and lives on this rank."""
        fragments = list(self._fragments())
        if not self.updates:
            self._optimizer_state.prepare(fragments, 0)
        found = [Piece(_weight(f.parameter), f.region, f.of(f.master.detach())) for f in fragments if f.count]
        found += self._optimizer_state.pieces(fragments)
        if self._layout.stage:
            # the copy of the tied table on the last stage; ZeRO cuts it elsewhere than on the first
            found = [piece for piece in found if f"/{EMBEDDING}." not in piece.tensor.name]
        found += self._joined(memory)
        return [piece for piece in found if piece.region.size]

    @torch.no_grad()
    def draw(self, seed: int) -> None:
        """Give the weights their initial values.  Collective; each rank draws only what it updates."""

        def values(parameter: LogicalParameter, region: Region) -> Tensor:
            return parameter.initial_values(seed, region.box, region.begin, region.end)

        self._set_weights(list(self._fragments()), values)

    @torch.no_grad()
    def load(self, memory: StreamMemory, read: Read, updates: int) -> None:
        """Load a saved state, whatever layout saved it.

        Raises:
            CheckpointError: from `read`: a tensor is missing or has another shape.
        """
        fragments = list(self._fragments())
        self._optimizer_state.prepare(fragments, updates)
        self._set_weights(fragments, lambda parameter, region: read(_weight(parameter), region))
        for piece in self._optimizer_state.pieces(fragments):
            self._fill(piece.values, piece.region, partial(read, piece.tensor))
        memory.replace(
            [
                (layer, micro_batch, field, read(piece.tensor, piece.region))
                for layer, micro_batch, field, piece in self._memory_pieces(memory)
            ]
        )

    def held_weights(self) -> Iterator[HeldWeight]:
        """All weights of this rank, for comparing copies."""
        for parameter in self._parameters:
            forward = shard(parameter.local)
            region, held, is_part = self._region(parameter), forward.data.view(-1), forward is not parameter.local
            if is_part:
                start = self._layout.data_rank * held.numel()
                region = region.part(start, start + held.numel())
            yield HeldWeight(parameter.name, parameter, region, held[: region.size], not is_part)
        for one in self._fragments() if self._zero is not None else ():
            values = one.of(one.master.detach())
            yield HeldWeight(f"{one.parameter.name} (master values)", one.parameter, one.region, values, False)

    def _region(self, parameter: LogicalParameter) -> Region:
        return Region.of_box(parameter.box(self._layout.tensor_rank, self._layout.tensor))

    def _set_weights(self, fragments: Sequence[Fragment], values: Callable[[LogicalParameter, Region], Tensor]) -> None:
        """Set the master values of this rank, and from all ranks' master values the weights.  Padding is zero."""
        for fragment in fragments:
            held = fragment.master.data.view(-1)[fragment.offset : fragment.offset + fragment.count]
            held[fragment.region.size :].zero_()
            self._fill(held[: fragment.region.size], fragment.region, partial(values, fragment.parameter))
        if self._zero is not None:
            locals_ = [fragment.parameter.local for fragment in fragments]
            renew_working_weights(self._zero, self._config.parallel.zero_stage, locals_, self._layout.data_rank)

    def _fill(self, values: Tensor, region: Region, read: Callable[[Region], Tensor]) -> None:
        """Set `values` to what `read` returns.  Without ZeRO, data parallel ranks hold the same: each reads a share."""
        if self._zero is not None or self._layout.data == 1 or values.is_meta:
            if region.size and not values.is_meta:  # the meta device holds no values
                values.copy_(read(region))
            return
        share = -(-region.size // self._layout.data)
        mine = region.part(self._layout.data_rank * share, (self._layout.data_rank + 1) * share)
        part = values.new_zeros(share)
        if mine.size:
            part[: mine.size] = read(mine)
        whole = values.new_empty(share * self._layout.data)
        dist.all_gather_into_tensor(whole, part, parallel_state.get_data_parallel_group())
        values.copy_(whole[: region.size])

    def _fragments(self) -> Iterator[Fragment]:
        """For each parameter, in order, the part of its master values on this rank, according to DeepSpeed."""
        flats = [flat for group in self._optimizer.param_groups for flat in group["params"]]
        for parameter in self._parameters:
            region, local = self._region(parameter), parameter.local
            if self._zero is None:
                yield Fragment(parameter, region, local.numel(), local, 0)
            else:
                stage, data_rank = self._config.parallel.zero_stage, self._layout.data_rank
                held = master_values(self._zero, stage, local, flats, data_rank)
                part = region.part(held.begin, held.begin + held.count)
                yield Fragment(parameter, part, held.count, held.tensor, held.offset)

    def _memory_pieces(self, memory: StreamMemory) -> Iterator[tuple[int, int, str, Piece]]:
        layout = self._layout
        for layer, micro_batch, field, values in memory.tensors():
            if micro_batch >= layout.filled_micro_batches:
                continue  # idle: it belongs to no stream
            first = layout.local_streams[micro_batch * layout.micro_batch]
            shape = [layout.streams, *values.shape[1:]]
            box = [(first, first + layout.micro_batch), *((0, size) for size in values.shape[1:])]
            split = self._split_dims(layer)[field]
            if split is not None:
                size = shape[split]
                shape[split] = size * layout.tensor
                box[split] = (layout.tensor_rank * size, (layout.tensor_rank + 1) * size)
            tensor = LogicalTensor(f"memory/layers.{layer}/{field}", tuple(shape), values.dtype)
            yield layer, micro_batch, field, Piece(tensor, Region.of_box(tuple(box)), values.reshape(-1))

    def _joined(self, memory: StreamMemory) -> Iterator[Piece]:
        """One piece for each field of a layer's memory: this rank's micro-batches hold consecutive streams."""
        parts: dict[str, list[Piece]] = {}
        for *_, piece in self._memory_pieces(memory):
            parts.setdefault(piece.tensor.name, []).append(piece)
        for pieces in parts.values():
            pieces.sort(key=lambda piece: piece.region.box[0])
            (first, _), *rest = pieces[0].region.box
            box = ((first, pieces[-1].region.box[0][1]), *rest)
            more = tuple(piece.values for piece in pieces[1:])
            yield Piece(pieces[0].tensor, Region.of_box(box), pieces[0].values, more)

    def _split_dims(self, layer: int) -> dict[str, int | None]:
        """By field of a layer's memory, the dimension (streams are 0) that tensor parallel ranks share."""
        model, by_sequence = self._config.model, self._config.parallel.sequence_parallel
        dims = {field.name: field.split_dim(by_sequence) for field in model.mixer_of(layer).memory(model)}
        return {name: None if dim is None else dim + 1 for name, dim in dims.items()}


def _weight(parameter: LogicalParameter) -> LogicalTensor:
    return LogicalTensor(f"weights/{parameter.name}", parameter.shape, torch.float32)
