"""How well a model knows a bounded context-free language: legal predictions, and its heads' output (2112.09174)."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor

from brt_dist.config.schema import ModelConfig
from brt_dist.data.objectives.base import EVALUATION, objective_of
from brt_dist.data.objectives.oracle import Oracle
from brt_dist.data.reader import Documents
from brt_dist.data.stream_schedule import StepReads
from brt_dist.errors import DataError


@dataclass(frozen=True)
class OracleScores:
    """Shares of what was read in an evaluation.

    Attributes:
        legal: of predicted tokens, those that could come next.
        legal_words: of documents read to their end, those in which all predictions were legal.
        state_accuracy: of tokens, those after which the heads predict the machine's state correctly.
        stack_accuracy: the same for all slots of its stack.
    """

    legal: float
    legal_words: float
    state_accuracy: float
    stack_accuracy: float


class OracleTally:
    """Counts what was predicted and read, segment by segment.

    Args:
        objective: knows the language.
        rows: that are read side by side.
        device: of the values.
    """

    def __init__(self, objective: Oracle, rows: int, device: torch.device) -> None:
        self._letters = torch.from_numpy(objective.letters()).to(device)
        # for each row, whether a prediction in its current word was illegal
        self._spoiled = torch.zeros(rows, dtype=torch.bool, device=device)
        self._shares = torch.zeros(len(OracleScores.__dataclass_fields__), 2, dtype=torch.float64, device=device)

    @property
    def vocab_size(self) -> int:
        """Tokens that can be predicted."""
        return len(self._letters)

    def add(
        self,
        rows: slice,
        predicted: Tensor,
        mask: Tensor,
        labels: Tensor,
        read: tuple[Tensor, Tensor],
        starts: Tensor,
        ends: Tensor,
    ) -> None:
        """Count a segment of some rows.

        Args:
            rows: which.
            predicted: (n,) likeliest tokens where `mask` is true.
            mask: (b, N) bool, tokens with a target.
            labels: (b, N, 2 + slots), see `Examples`.
            read: by the heads, logits (N, b, states) and (N, b, slots, symbols).
            starts, ends: (b, N/W) bool, blocks that start a word, and that end one.
        """
        is_legal = (self._letters[predicted] & labels[..., 0][mask]) != 0
        words = self._words(rows, torch.zeros_like(mask).masked_scatter(mask, ~is_legal), starts, ends)
        of_state, of_stack = (part.transpose(0, 1).argmax(-1) for part in read)
        known = labels[..., 1] >= 0
        state, stack = of_state == labels[..., 1], (of_stack == labels[..., 2:]).all(-1)
        found = is_legal, words, state[known], stack[known]
        self._shares[:, 0] += torch.stack([one.sum() for one in found])
        self._shares[:, 1] += torch.tensor([one.numel() for one in found], device=self._shares.device)

    def _words(self, rows: slice, is_illegal: Tensor, starts: Tensor, ends: Tensor) -> Tensor:
        """Whether all predictions were legal in each word that ends in the segments (b, N)."""
        found, spoiled, blocks = [], self._spoiled[rows], is_illegal.unflatten(1, (starts.shape[1], -1)).any(-1)
        for block in range(starts.shape[1]):
            spoiled = (spoiled & ~starts[:, block]) | blocks[:, block]
            found.append(~spoiled[ends[:, block]])
        self._spoiled[rows] = spoiled
        return torch.cat(found)

    def result(self) -> OracleScores:
        """The shares over all ranks; some may have counted nothing, others the same tokens.  Collective."""
        dist.all_reduce(self._shares)
        return OracleScores(*((right / max(among, 1.0)) for right, among in self._shares.tolist()))


def word_ends(plan: StepReads, documents: Documents) -> npt.NDArray[np.bool_]:
    """(B, N/W): last blocks of documents with two tokens or more; a single token predicts nothing."""
    length = np.asarray(documents.lengths)[plan.document]
    found: npt.NDArray[np.bool_] = (plan.length > 0) & (plan.offset + plan.length >= length) & (length > 1)
    return found


def oracle_of(model: ModelConfig) -> Oracle | None:
    """The objective that knows a model's language, if it was trained with an oracle."""
    objective = objective_of(model, EVALUATION)
    return objective if isinstance(objective, Oracle) else None


def first_other_text(objective: Oracle, documents: Documents) -> str | None:
    """Why legality is meaningless on these documents: the first one that does not begin a word of the language."""
    nothing = np.zeros(0, np.int64)
    for number in range(len(documents.lengths)):
        try:
            objective.labels(nothing, documents.tokens(number, 0, documents.length(number)))
        except DataError as error:
            return f"document {number}: {error}"
    return None
