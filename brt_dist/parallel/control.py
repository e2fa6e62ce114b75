"""What all ranks agree on between backward and update: one small tensor, which the host reads once.

Each rank sums loss and norm by itself, and nothing guarantees that the sums are equal bit for bit on all of them.  For
decisions that depend on them (to skip an update, to end a diverged run), all ranks must see one number, so they take
the largest.

DeepSpeed judges gradients by their norm, which misses something: for a weight that every tensor parallel rank holds (a
norm's scale, say), only the first rank's gradient counts in the norm, so a rank with a faulty gradient would update its
copy, which then differs from the others.  So every rank also checks its own gradients as they are computed.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from brt_dist.parallel.device import Device


@dataclass(frozen=True)
class StepResult:
    """Result of a step, the same on all ranks.

    Attributes:
        loss: mean loss of the global batch, in nats per token with a target; NaN if it is not finite on any rank.
        grad_norm: norm of its gradient before clipping; infinite if it is not finite on any rank.
        asked_to_stop: whether any rank was asked to stop.
    """

    loss: float
    grad_norm: float
    asked_to_stop: bool = False

    @property
    def is_finite(self) -> bool:
        """Whether loss and norm are finite.  If not, the update was skipped and the memory is unchanged."""
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


class Control:
    """Checks the gradients of this rank as the backward pass computes them, and agrees with the other ranks.

    Args:
        parameters: of this rank.
    """

    def __init__(self, parameters: Iterable[Tensor], device: Device) -> None:
        self._device = device.torch
        # zero, or NaN once a gradient was not finite
        self._mark = torch.zeros((), device=self._device)
        self._hooks = [p.register_hook(self._look) for p in parameters if p.requires_grad]

    def close(self) -> None:
        """Release the parameters."""
        for hook in self._hooks:
            hook.remove()

    def agree(self, loss: Tensor | None, norm: Tensor, asked: bool) -> StepResult:
        """The result of the step as all ranks see it.  Collective.

        Args:
            loss: of the global batch; None on ranks that do not know it.
            norm: of its gradient.
            asked: whether this rank was asked to stop.
        """
        # a loss is never negative
        known = torch.zeros((), device=self._device) if loss is None else loss
        is_bad_loss = ~torch.isfinite(known)
        is_bad_gradient = torch.isnan(self._mark) | ~torch.isfinite(norm.view(()))
        values = torch.stack(
            [
                torch.full((), float(asked), dtype=torch.float64, device=self._device),
                *(one.to(torch.float64) for one in (is_bad_loss, is_bad_gradient)),
                torch.where(is_bad_loss, 0.0, known.to(torch.float64)),
                torch.where(is_bad_gradient, 0.0, norm.view(()).to(torch.float64)),
            ]
        )
        self._mark.zero_()
        dist.all_reduce(values, op=dist.ReduceOp.MAX)
        any_asked, any_bad_loss, any_bad_gradient, largest_loss, largest_norm = values.tolist()
        return StepResult(
            math.nan if any_bad_loss else largest_loss,
            math.inf if any_bad_gradient else largest_norm,
            any_asked > 0,
        )

    def _look(self, gradient: Tensor) -> None:
        # summed in fp32: a large sum in low precision could overflow
        self._mark += gradient.sum(dtype=torch.float32) * 0
