"""Positions of token to token attention: T5's relative bias or rotation; those of tokens; the mask of the window."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from brt_dist.config.schema import ModelConfig
from brt_dist.model.linear import local_heads
from brt_dist.model.norms import widened
from brt_dist.model.parameters import declare, normal
from brt_dist.model.shapes import POSITION_BUCKETS as BUCKETS

MAX_DISTANCE = 128
ROTARY_BASE = SINUSOID_BASE = 10_000.0


def bucket(distance: int) -> int:
    """Bucket of a distance >= 0 from the query back to the key: exact below 16, then logarithmic up to 128."""
    exact = BUCKETS // 2
    if distance < exact:
        return distance
    scaled = math.log(distance / exact) / math.log(MAX_DISTANCE / exact)
    return min(BUCKETS - 1, exact + int(scaled * (BUCKETS - exact)))


class RelativeBias(nn.Module):
    """One table (H, 32) per layer: what is added to a logit for the distance between query and key."""

    buckets: Tensor  # (W,) of the visible keys of a query, farthest first

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(local_heads(config), BUCKETS))
        declare(self.weight, normal(1 / math.sqrt(BUCKETS)), partition_dim=0)
        buckets = torch.tensor([bucket(distance) for distance in range(config.window, 0, -1)])
        self.register_buffer("buckets", buckets, persistent=False)

    def forward(self) -> Tensor:
        """Bias of the W keys that a query sees, the farthest first, float32 (h, 1, W); see :func:`banded`."""
        return widened(self.weight)[:, None, self.buckets]


def banded(visible: Tensor, rows: int | None = None) -> Tensor:
    """From (h, 1, W), the keys that a query sees, to (h, n, W + n): n queries in a row against the keys they see.

    Of a whole block (n = W, the default) these are [previous block; block].  A query sees the W keys before it, and
    not its own; the others are -inf.  The bias depends on key minus query alone, so each row is the row above shifted
    by one: rows are windows of one vector, and the gradient needs no scatter over n*(W + n) entries.

    Args:
        rows: n.
    """
    window = visible.shape[-1]
    rows = window if rows is None else rows
    row = F.pad(visible.squeeze(1), (rows - 1, rows), value=-math.inf)
    return row.unfold(-1, window + rows, 1).flip(-2)


def positioned(x: Tensor) -> Tensor:
    """Embedded tokens x (N, b, D) with the sinusoids of their positions added (arXiv 1706.03762)."""
    length, _, size = x.shape
    wide = widened(x)
    rates = SINUSOID_BASE ** -(torch.arange(0, size, 2, device=x.device, dtype=wide.dtype) / size)
    angles = torch.arange(length, device=x.device, dtype=wide.dtype)[:, None] * rates
    return (wide + torch.cat([angles.sin(), angles.cos()], -1)[:, None, :size]).to(x.dtype)


def rotated(x: Tensor, first: int = 0) -> Tensor:
    """Rotary positions (arXiv 2104.09864): turn the pairs (x_j, x_{j+E/2}) of position p by p / 10000^(2j/E).

    Positions are those within [previous block; block], which are the same for every block and segment; a product of
    a query and a key depends on their distance alone.

    Args:
        x: (..., n, E) queries or keys, E even.
        first: position of the first.

    Returns:
        The same shape and type; zeros stay zeros.
    """
    length, size = x.shape[-2:]
    wide = widened(x)
    rates = ROTARY_BASE ** -(torch.arange(0, size, 2, device=x.device, dtype=wide.dtype) / size)
    angles = torch.arange(first, first + length, device=x.device, dtype=wide.dtype)[:, None] * rates
    cos, sin = angles.cos(), angles.sin()
    one, two = wide.chunk(2, -1)
    return torch.cat([one * cos - two * sin, two * cos + one * sin], -1).to(x.dtype)
