"""Sums whose weights depend only on the distance between two positions: with a matrix, or with an FFT."""

import torch
from torch import Tensor


def toeplitz(kernel: Tensor) -> Tensor:
    """(..., 2n-1) -> the matrix (..., n, n) with entry kernel[j - i + n - 1] in row i, column j."""
    return kernel.unfold(-1, (kernel.shape[-1] + 1) // 2, 1).flip(-2)


def weighted_sums(kernel: Tensor, x: Tensor) -> Tensor:
    """`toeplitz(kernel) @ x` in O(n log n) for each channel.

    Args:
        kernel: (..., 2n-1).
        x: (..., n, channels), float32 or float64.
    """
    n = x.shape[-2]
    by_lag = torch.cat([kernel[..., :n].flip(-1), kernel[..., :1] * 0, kernel[..., n:].flip(-1)], -1)
    spectrum = torch.fft.rfft(by_lag.unsqueeze(-1), dim=-2) * torch.fft.rfft(x, n=2 * n, dim=-2)
    return torch.fft.irfft(spectrum, n=2 * n, dim=-2)[..., :n, :]
