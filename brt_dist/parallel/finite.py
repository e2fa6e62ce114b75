"""No update is made of a gradient that is not finite, on whichever rank it appeared.

DeepSpeed judges by the norm of the gradient.  That is blind on one side: of a weight that every tensor parallel rank
has (a norm's scale, say), only the first rank's gradient goes into the norm, and a rank with a faulty one would update
its copy, which from then on is another.  So every rank looks at its own gradients as they are made, all ranks agree
before the update, and then all leave it out.
"""

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

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
        self._update = engine._take_model_step
        engine._take_model_step = self._guarded_update
        self.left_out = False  # the last update

    def close(self) -> None:
        """Let go of engine and parameters."""
        self._engine._take_model_step = self._update
        for hook in self._hooks:
            hook.remove()

    def _look(self, gradient: Tensor) -> None:
        # summed in fp32: a large sum of a low precision would not be finite by itself
        self._mark += gradient.sum(dtype=torch.float32) * 0

    def _guarded_update(self, *arguments: Any, **named: Any) -> Any:
        mark = torch.isnan(self._mark).float()
        self._mark.zero_()
        dist.all_reduce(mark, op=dist.ReduceOp.MAX)
        self.left_out = bool(mark)
        if self.left_out:
            self._spoil()
        return self._update(*arguments, **named)

    @torch.no_grad()
    def _spoil(self) -> None:
        """On every rank: nothing to update without ZeRO; with it a norm at which DeepSpeed leaves the update out."""
        reduced = list(_reduced(self._engine.optimizer, self._parameters))
        for gradient in reduced:
            gradient.fill_(math.nan)
        if not reduced:
            for parameter in self._parameters:
                parameter.grad = None


def _reduced(optimizer: Any, parameters: Iterable[Tensor]) -> Iterator[Tensor]:
    """Where DeepSpeed keeps the gradients of the whole batch: ZeRO 1 to 3, or bf16 with fp32 sums; else nothing."""
    for gradients in getattr(optimizer, "averaged_gradients", {}).values():
        yield from (gradient for gradient in gradients or () if gradient is not None)
    for parameter in parameters:
        if (gradient := getattr(parameter, "_hp_grad", None)) is not None:
            yield gradient
