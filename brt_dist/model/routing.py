"""The regulariser of routers: equal use of experts has the largest entropy (MoEUT, arXiv 2405.16039).

For each stream, the experts' probabilities are averaged over the tokens of the segment and over all repeats of the
layer; their negative entropy, times a coefficient, is added to the loss.  It reaches the weights without crossing the
network: a hidden state of the layer carries its gradient (:func:`with_loss`), on any pipeline stage.  The reported loss
is that of the tokens alone.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from brt_dist.model.norms import widened


@dataclass(frozen=True)
class Routing:
    """What routers chose in a forward of a micro-batch; the repeats of a layer share it.

    Attributes:
        repeats: how many times each layer runs.
        repeat: which of these runs, from 0.
        share: weight of the mean over the streams of the micro-batch, so that the average over micro-batches and data
            parallel ranks is the mean over all streams.
        sums: by router and repeat (b, ..., experts), see `log_sums`.
    """

    repeats: int = 1
    repeat: int = 0
    share: float = 1.0
    sums: dict[tuple[str, int], Tensor] = field(default_factory=dict)

    def regularised(self, y: Tensor, router: str, logits: Tensor, weight: float) -> Tensor:
        """`y`, which in the last repeat also carries the gradient of the regulariser.

        Args:
            y: a hidden state that depends on the layer.
            router: its name.
            logits: (N, b, ..., experts) of all tokens.
            weight: coefficient of the mean over streams and all other dimensions.
        """
        if not weight or not torch.is_grad_enabled():
            return y
        self.sums[router, self.repeat] = log_sums(logits)
        if self.repeat < self.repeats - 1:
            return y
        total = torch.stack([self.sums[router, repeat] for repeat in range(self.repeats)]).logsumexp(0)
        loss = negative_entropy(total - math.log(self.repeats * len(logits)))
        return with_loss(y, loss, weight * self.share)


def log_sums(logits: Tensor) -> Tensor:
    """Logarithm of the sum over tokens of the probabilities of experts, from logits (N, b, ..., experts)."""
    return widened(logits).log_softmax(-1).logsumexp(0)


def negative_entropy(log_mean: Tensor) -> Tensor:
    """sum p log p over experts, from log p (..., experts); the mean over all other dimensions."""
    return (log_mean.exp() * log_mean).sum(-1).mean()


def with_loss(x: Tensor, loss: Tensor, weight: float) -> Tensor:
    """`x` unchanged; its backward also begins one of `weight` times `loss`."""
    return _WithLoss.apply(x, loss, weight)


class _WithLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, loss: Tensor, weight: float) -> Tensor:
        ctx.weight, ctx.dtype = weight, loss.dtype
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        return gradient, gradient.new_tensor(ctx.weight, dtype=ctx.dtype), None
