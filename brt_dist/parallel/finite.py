"""Skips the update on all ranks if a gradient is not finite on any of them.

DeepSpeed judges by the norm of the gradient.  That is blind on one side: of a weight that every tensor parallel rank
has (a norm's scale, say), only the first rank's gradient goes into the norm, and a rank with a faulty one would update
its copy, which from then on is another.  So every rank looks at its own gradients as they are made, all ranks agree
before the update, and then all leave it out.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from brt_dist.parallel.deepspeed_internals import before_update, reduced_gradients
from brt_dist.parallel.device import Device


class FiniteGradients:
    """Stands between the backward and the update of a DeepSpeed engine.

    Args:
        parameters: of this rank.
        engine: DeepSpeed's; its update is guarded from now on.
    """

    def __init__(self, parameters: Iterable[Tensor], engine: Any, device: Device) -> None:
        self._engine = engine
        # zero, or NaN once a gradient was not finite
        self._mark = torch.zeros((), device=device.torch)
        self._parameters = list(parameters)
        self._hooks = [p.register_hook(self._look) for p in self._parameters if p.requires_grad]
        self._unguard = before_update(engine, self._agree)
        self.left_out = False  # the last update

    def close(self) -> None:
        """Let go of engine and parameters."""
        self._unguard()
        for hook in self._hooks:
            hook.remove()

    def _look(self, gradient: Tensor) -> None:
        # summed in fp32: a large sum of a low precision would not be finite by itself
        self._mark += gradient.sum(dtype=torch.float32) * 0

    def _agree(self) -> None:
        """All ranks learn whether one of them has seen a gradient that is not finite, and then spoil theirs."""
        mark = torch.isnan(self._mark).float()
        self._mark.zero_()
        dist.all_reduce(mark, op=dist.ReduceOp.MAX)
        self.left_out = bool(mark)
        if self.left_out:
            self._spoil()

    @torch.no_grad()
    def _spoil(self) -> None:
        """On every rank: nothing to update without ZeRO; with it a norm at which DeepSpeed leaves the update out."""
        reduced = list(reduced_gradients(self._engine, self._parameters))
        for gradient in reduced:
            gradient.fill_(math.nan)
        if not reduced:
            for parameter in self._parameters:
                parameter.grad = None
