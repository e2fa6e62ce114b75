"""Kernels: how attention is computed, to the window of tokens before each token and to states.

All kernels compute the same function; they differ in rounding, speed, and what they keep for the backward pass.
Besides the device adapter (`brt_dist/parallel/device.py`), only these files and `rows.py` check which device it is.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from brt_dist.kinds import ATTENTION_KERNELS
from brt_dist.model.attention import Window, attend
from brt_dist.model.dropout import Mask

_BEST = {"cuda": "triton"}
_ELSEWHERE = "blocked"


class AttentionKernel(ABC):
    """Computes attention in one way."""

    @abstractmethod
    def __call__(self, queries: Tensor, window: Window, visible: Tensor, mask: Mask | None) -> Tensor:
        """Attention of each token to the W tokens before it.

        Args:
            queries: (b, t, h, W, E), of any type.
            window: keys and values of each block and the block before it.
            visible: (h or 1, 1, W), added to the logits of the keys that a query sees, the farthest first.
            mask: dropout of the probabilities, (b, 1, h, W, 2W), or None.

        Returns:
            (b, t, h, W, E), of the type of the values.
        """

    def everywhere(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Attention of (b, ..., h, n, E) to all keys and values (b, ..., h, m, E), without a bias."""
        return attend(queries, keys, values)


def kernel(name: str, device: torch.device) -> AttentionKernel:
    """The kernel of that name; "auto" is the fastest one for the device."""
    return ATTENTION_KERNELS[_BEST.get(device.type, _ELSEWHERE) if name == "auto" else name]()
