"""A short causal convolution of each channel by itself, whose last inputs are carried from segment to segment."""

import torch
from torch import Tensor, nn

from brt_dist.model.parameters import declare, normal


class ShortConvolution(nn.Module):
    """y_n = sum_j weight[:, K-1-j] x_{n-j}, over the K last tokens of the document.

    The channels are this rank's part of a tensor parallel split.
    """

    def __init__(self, channels: int, size: int, ranks: int, std: float) -> None:
        super().__init__()
        self.size = size
        self.weight = nn.Parameter(torch.empty(channels // ranks, size))
        declare(self.weight, normal(std), partition_dim=0)

    def forward(self, blocks: Tensor, tail: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
        """Convolve.

        Args:
            blocks: (t, W, b, C) tokens; W at least K-1 if there are several blocks.
            tail: (b, K-1, C), the inputs before the first block.
            starts: (b, t) bool; where true there was no token before the block.

        Returns:
            (t, W, b, C), and the last inputs (b, K-1, C).
        """
        kept, window = self.size - 1, blocks.shape[1]
        before = tail.to(blocks.dtype).transpose(0, 1).unsqueeze(0)
        if len(blocks) > 1:
            before = torch.cat([before, blocks[:-1, window - kept :]])
        before = before.masked_fill(starts.t()[:, None, :, None], 0.0)
        padded = torch.cat([before, blocks], 1)
        terms = (padded[:, shift : shift + window] * self.weight[:, shift] for shift in range(self.size))
        return sum(terms, torch.zeros_like(blocks)), padded[-1, window:].transpose(0, 1)
