"""Whole blocks: every query meets the keys of two blocks, and the half that it does not see is masked."""

from torch import Tensor

from brt_dist.model.attention import Window, attend
from brt_dist.model.dropout import Mask
from brt_dist.model.kernels.base import AttentionKernel
from brt_dist.model.positions import banded


class Plain(AttentionKernel):
    """The arithmetic of version 0.1.0, bit for bit."""

    def __call__(self, queries: Tensor, window: Window, visible: Tensor, mask: Mask | None) -> Tensor:
        return attend(queries, window.keys, window.values, banded(visible), mask)
