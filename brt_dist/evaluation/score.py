"""Loss of a trained model on whole documents, in one process.

Every document is read from its first token to its last with memory carried, and each of its tokens but the first is
predicted; so the result does not depend on the segment or on how many streams are read at a time.  (Training evaluates
with `evaluate`, in the run's layout and on a number of segments.)
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from brt_dist.data.one_pass import OnePassSchedule
from brt_dist.data.reader import Documents, SegmentReader
from brt_dist.errors import ConfigError, DataError
from brt_dist.evaluation.forgetting import MemoryPart, clear
from brt_dist.evaluation.positions import PositionBins, by_position
from brt_dist.events import PositionLoss
from brt_dist.model.model import BlockRecurrentModel

Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Score:
    """The loss on some documents.

    Attributes:
        document_nats: (K,) sum of the nats of each document.
        document_tokens: (K,) predicted tokens of each: all but the first.
        positions: mean loss by position in the document.
    """

    document_nats: Float64Array
    document_tokens: Int64Array
    positions: tuple[PositionLoss, ...]

    @property
    def nats(self) -> float:
        return float(self.document_nats.sum())

    @property
    def tokens(self) -> int:
        return int(self.document_tokens.sum())

    @property
    def bits_per_token(self) -> float:
        return self.nats / self.tokens / math.log(2)

    @property
    def standard_error(self) -> float | None:
        """Of bits per token, over documents (ratio estimator); None for a single one."""
        count = len(self.document_nats)
        if count < 2:
            return None
        residuals = self.document_nats - self.nats / self.tokens * self.document_tokens
        variance = count / (count - 1) * float((residuals**2).sum())
        return math.sqrt(variance) / self.tokens / math.log(2)

    def bits_per_byte(self, text_bytes: int) -> float:
        """Args:
        text_bytes: of the predicted text in UTF-8.
        """
        return self.nats / math.log(2) / text_bytes

    def word_perplexity(self, words: int) -> float:
        """Perplexity normalised by words, as PG19 is reported: exp(nats / words); infinite where it overflows.

        Args:
            words: of the documents, split at white space.
        """
        try:
            return math.exp(self.nats / words)
        except OverflowError:
            return math.inf


@torch.no_grad()
def score(
    network: BlockRecurrentModel,
    documents: Documents,
    *,
    segment: int,
    streams: int,
    clear_memory: bool = False,
    clear_part: MemoryPart | None = None,
    on_tokens: Callable[[int], None] = lambda tokens: None,
) -> Score:
    """Read all documents once.

    Args:
        network: in evaluation mode.
        documents: to read.
        segment: tokens read of a stream at a time, a multiple of the window.
        streams: documents read at a time.
        clear_memory: clear memory at the start of every segment: how much worse this is shows what memory is worth.
        clear_part: clear only the state, or only the cache, at the start of every segment.
        on_tokens: called after each step with the number of tokens predicted in it.

    Raises:
        ConfigError: `segment` is not a multiple of the window.
        DataError: no document has two tokens, so nothing can be predicted.
    """
    window, device = network.config.window, next(network.parameters()).device
    if segment % window or segment < window:
        nearest = max(round(segment / window), 1) * window
        raise ConfigError(f"segment={segment} is not a multiple of model.window={window}; nearest: {nearest}")
    lengths = np.asarray(documents.lengths)
    if int(lengths.max(initial=0)) < 2:
        raise DataError("no document has two tokens or more, so there is nothing to predict")
    streams = min(streams, len(lengths))
    schedule = OnePassSchedule(lengths, streams=streams, segment=segment, window=window)
    reader, bins = SegmentReader(documents, schedule), PositionBins(lengths, window)
    document_nats, document_tokens = np.zeros(len(lengths)), np.zeros(len(lengths), np.int64)
    bin_nats, bin_tokens = np.zeros(len(bins.edges)), np.zeros(len(bins.edges), np.int64)
    memory, cursor = network.blank_memory(streams), schedule.start()
    while not schedule.is_finished(cursor):
        plan, cursor = schedule.step(cursor)
        read = reader.read(plan, range(streams))
        starts = read.starts.copy()
        if clear_memory:
            starts[:, 0] = True
        tokens, target, mask = (_tensor(values, device) for values in (read.input, read.target, read.mask))
        if clear_part is not None:
            clear(network, memory, clear_part)
        losses, memory = network(tokens, memory, _tensor(starts, device), None, target)
        losses = losses.double().masked_fill(~mask, 0.0)
        blocks = losses.unflatten(1, (-1, window)).sum(2).cpu().numpy()
        targets = bins.targets(plan)
        for sums, counts, index in (
            (document_nats, document_tokens, plan.document),
            (bin_nats, bin_tokens, bins.of(plan)),
        ):
            np.add.at(sums, index, blocks)
            np.add.at(counts, index, targets)
        on_tokens(plan.loss_tokens)
    return Score(document_nats, document_tokens, by_position(bins.edges, bin_nats.tolist(), bin_tokens.tolist()))


def _tensor(values: Any, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(values).to(device)
