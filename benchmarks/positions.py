"""Loss by position in the document: how much better a model predicts once it has read much of it."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from brt_dist.config.schema import Config
from brt_dist.data.dataset import Dataset
from brt_dist.data.one_pass import OnePassSchedule
from brt_dist.data.reader import SegmentReader
from brt_dist.model.model import BlockRecurrentModel, token_losses

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Profile:
    """Losses on K documents in P bins of position.

    edges: first token of each bin; the last bin has no end.  bits: (K, P) sums.  tokens: (K, P) those with a target.
    """

    edges: tuple[int, ...]
    bits: FloatArray
    tokens: FloatArray

    @property
    def by_bin(self) -> FloatArray:
        """(P,) bits per token over all documents; not a number where there is no token."""
        with np.errstate(invalid="ignore"):
            return self.bits.sum(0) / self.tokens.sum(0)

    @property
    def by_document(self) -> FloatArray:
        """(K,) bits per token."""
        return self.bits.sum(1) / self.tokens.sum(1)

    @property
    def mean(self) -> float:
        """Bits per token over everything."""
        return float(self.bits.sum() / self.tokens.sum())


@torch.no_grad()
def profile(model: BlockRecurrentModel, config: Config, dataset: Dataset, edges: tuple[int, ...]) -> Profile:
    """Read every document of `dataset` once, from its beginning, with memory carried over its segments."""
    streams = min(config.data.streams, len(dataset.lengths))
    window, segment = config.model.window, config.data.segment
    schedule = OnePassSchedule(dataset.lengths, streams=streams, segment=segment, window=window)
    reader, cursor, memory = SegmentReader(dataset, schedule), schedule.start(), model.blank_memory(streams)
    shape = (len(dataset.lengths), len(edges))
    bits, tokens = np.zeros(shape), np.zeros(shape)
    while not schedule.is_finished(cursor):
        plan, cursor = schedule.step(cursor)
        read = reader.read(plan, range(streams))
        logits, memory = model(torch.from_numpy(read.input), memory, torch.from_numpy(read.starts))
        losses = token_losses(logits, torch.from_numpy(read.target)).numpy() / np.log(2)
        position = np.repeat(plan.offset, window, 1) + np.tile(np.arange(window), segment // window)
        bins = np.searchsorted(edges, position, side="right") - 1
        document = np.repeat(plan.document, window, 1)
        np.add.at(bits, (document[read.mask], bins[read.mask]), losses[read.mask])
        np.add.at(tokens, (document[read.mask], bins[read.mask]), 1)
    return Profile(edges, bits, tokens)
