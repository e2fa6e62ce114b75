"""Chooses the next token from its logits."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from brt_dist.errors import ConfigError
from brt_dist.model.parameters import seeded_generator


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.  The filters apply in this order, each to what the one before left.

    Attributes:
        repetition_penalty: above 1, tokens of the text so far become less likely: a positive logit is divided by it,
            a negative one multiplied (CTRL, arXiv 1909.05858).
        temperature: divides the logits; 0: always the most likely token.
        top_k: keep the k most likely tokens; None: all.
        top_p: keep the most likely tokens that together reach this probability (arXiv 1904.09751); None: all.
        min_p: keep tokens with at least this fraction of the most likely one's probability (arXiv 2407.01082); None:
            all.
        seed: the same weights, prompt and seed give the same text, whatever else is in the batch.

    Raises:
        ConfigError: a value is out of range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, fits, nearest in (
            ("temperature", self.temperature, 0 <= self.temperature < math.inf, "0 or more"),
            ("top_k", self.top_k, self.top_k is None or self.top_k >= 1, "1 or more"),
            ("top_p", self.top_p, self.top_p is None or 0 < self.top_p <= 1, "above 0, at most 1"),
            ("min_p", self.min_p, self.min_p is None or 0 <= self.min_p <= 1, "from 0 to 1"),
            ("repetition_penalty", self.repetition_penalty, 0 < self.repetition_penalty < math.inf, "above 0"),
        ):
            if not fits:
                raise ConfigError(f"{name}={value}: it must be {nearest}")


def choose(logits: Tensor, sampling: Sampling, texts: Sequence[Sequence[int]], draws: Sequence[str]) -> list[int]:
    """A token for each row.

    Args:
        logits: (k, V).
        sampling: how.
        texts: tokens so far, of each row; read if there is a repetition penalty.
        draws: what names the random number of each row, besides the seed.
    """
    scores = logits.double().cpu()
    if sampling.repetition_penalty != 1:
        for row, text in enumerate(texts):
            seen = torch.tensor(sorted(set(text)))
            values = scores[row, seen]
            penalty = sampling.repetition_penalty
            scores[row, seen] = torch.where(values > 0, values / penalty, values * penalty)
    if sampling.temperature == 0:
        return [int(token) for token in scores.argmax(-1)]
    probabilities, tokens = torch.sort(
        (scores / sampling.temperature).softmax(-1), dim=-1, descending=True, stable=True
    )
    keep = torch.ones_like(probabilities, dtype=torch.bool)
    if sampling.top_k is not None:
        keep[:, sampling.top_k :] = False
    if sampling.top_p is not None:
        kept = probabilities * keep
        kept = kept / kept.sum(-1, keepdim=True)
        keep &= kept.cumsum(-1) - kept < sampling.top_p  # the token that reaches it is kept
    if sampling.min_p is not None:
        keep &= probabilities >= sampling.min_p * probabilities[:, :1]
    sums = (probabilities * keep).cumsum(-1)
    uniform = torch.stack(
        [torch.rand(1, generator=seeded_generator(f"{sampling.seed}/{draw}"), dtype=torch.float64) for draw in draws]
    )
    places = torch.searchsorted(sums, uniform * sums[:, -1:], right=True).clamp_max(tokens.shape[1] - 1)
    return [int(token) for token in tokens.gather(1, places).squeeze(1)]
