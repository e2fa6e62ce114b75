"""Loss by position in the document, which shows how much a model gains from what it has read so far.

The bins of positions double in width: [0, W), [W, 2W), [2W, 4W), ... with the window W.  Documents start on a block
boundary, so each block of W tokens is in one bin, and every rank knows which from the stream schedule.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import one_hot

from brt_dist.data.epoch_order import Int64Array
from brt_dist.data.stream_schedule import StepReads
from brt_dist.events import PositionLoss
from brt_dist.parallel.engine import Engine
from brt_dist.parallel.micro_batches import StepInput
from brt_dist.parallel.step_input import in_rows


def doubling(first: int, longest: int) -> tuple[int, ...]:
    """Edges 0, first, 2 first, 4 first, ... below `longest`: first token of each bin; the last bin has no end."""
    edges = [0]
    while (edge := edges[-1] * 2 or first) < longest:
        edges.append(edge)
    return tuple(edges)


@dataclass(frozen=True)
class PositionBins:
    """The bins for documents of `lengths` (K,) tokens, read in blocks of `window`."""

    lengths: Int64Array
    window: int

    @property
    def edges(self) -> tuple[int, ...]:
        return doubling(self.window, int(self.lengths.max(initial=1)))

    def of(self, plan: StepReads) -> Int64Array:
        """The bin of each block of a step, (B, N/W); that of a block without tokens means nothing."""
        return (np.searchsorted(self.edges, plan.offset, side="right") - 1).astype(np.int64)

    def targets(self, plan: StepReads) -> Int64Array:
        """Tokens with a target in each block, (B, N/W): all of a document but its last."""
        left = np.asarray(self.lengths)[plan.document] - 1 - plan.offset
        return np.clip(left, 0, plan.length).astype(np.int64)


@dataclass(frozen=True)
class PositionTally:
    """Observer of an evaluation step (see `Engine`) that sums nats by bin.

    Attributes:
        bins: for each micro-batch, (b, N/W) int64 in [0, P), the bin of each block.
        nats: (P,) float64, the sums; updated in place.
    """

    bins: Sequence[Tensor]
    nats: Tensor

    wants_logits: ClassVar[bool] = False

    def __call__(self, micro_batch: int, scores: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        bins = self.bins[micro_batch]
        losses = scores.masked_fill(~mask, 0.0)
        blocks = losses.unflatten(1, (bins.shape[1], -1)).sum(2, dtype=torch.float64)
        # a product, because index_add is not deterministic on a GPU
        self.nats.add_(blocks.flatten() @ one_hot(bins.flatten(), len(self.nats)).double())
        return losses.sum()


def by_position(edges: tuple[int, ...], nats: list[float], tokens: list[int]) -> tuple[PositionLoss, ...]:
    """Mean loss of each bin from its sums, without bins that have no tokens."""
    ends = (*edges[1:], None)
    return tuple(
        PositionLoss(begin, end, total / count, count)
        for begin, end, total, count in zip(edges, ends, nats, tokens, strict=True)
        if count
    )


class Positions:
    """The tally of an evaluation (see `evaluate`) of the loss by position, and of tokens that memory was carried to.

    Args:
        engine: the model.
        lengths: tokens of each document (K,).
    """

    def __init__(self, engine: Engine, lengths: Int64Array) -> None:
        self._layout, self._window, self._device = engine.layout, engine.config.model.window, engine.device.torch
        self._bins = PositionBins(np.asarray(lengths), self._window)
        self._counts = np.zeros(len(self._bins.edges), np.int64)
        self._nats = torch.zeros(len(self._bins.edges), dtype=torch.float64, device=self._device)
        self._carried = 0

    def observer(self, plan: StepReads, step: StepInput) -> PositionTally:
        bins, targets = self._bins.of(plan), self._bins.targets(plan)
        np.add.at(self._counts, bins, targets)
        # of a document that began before the segment did
        self._carried += int(targets[plan.offset > self._window * np.arange(plan.offset.shape[1])].sum())
        mine = in_rows(bins[list(self._layout.local_streams)], self._layout)
        return PositionTally(torch.from_numpy(mine).to(self._device).split(self._layout.micro_batch), self._nats)

    def results(self, tokens: int) -> dict[str, Any]:
        dist.all_reduce(self._nats)  # only last stages have values, the same on all their tensor parallel ranks
        nats = (self._nats / self._layout.tensor).tolist()
        positions = by_position(self._bins.edges, nats, self._counts.tolist())
        return {"positions": positions, "carried_tokens": self._carried}
