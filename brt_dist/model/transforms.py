"""Mixing and shortening sequences by Fourier transforms: FNet (arXiv 2105.03824), Fourier Transformer (2305.15099).

None of this is causal: the output at a token depends on all tokens.  Everything is computed in float32 at least.
"""

import math

import torch
from torch import Tensor

from brt_dist.model.norms import widened


def fourier_mixed(x: Tensor) -> Tensor:
    """Re(F_T F_D x): the transform over tokens of the transform over channels of x (..., T, D), not normalised."""
    return torch.fft.fft(torch.fft.fft(widened(x), dim=-1), dim=-2).real.to(x.dtype)


def fourier_mixed_by_products(x: Tensor, causal: bool = False) -> Tensor:
    """The same with matrix products, C_T x C_D - S_T x S_D.

    Args:
        x: (..., T, D).
        causal: leave out the contributions of later tokens (ours, not in the paper).  That costs T² and depends on
            where the segment begins, so it has no state to carry.
    """
    wide = widened(x)
    (cos_t, sin_t), (cos_d, sin_d) = (_waves(size, wide) for size in wide.shape[-2:])
    if causal:
        cos_t, sin_t = cos_t.tril(), sin_t.tril()
    return (cos_t @ wide @ cos_d - sin_t @ wide @ sin_d).to(x.dtype)


def cosines(x: Tensor) -> Tensor:
    """The orthonormal DCT-II of the last dimension of x (..., n)."""
    wide, size = widened(x), x.shape[-1]
    folded = torch.fft.fft(torch.cat([wide[..., ::2], wide[..., 1::2].flip(-1)], -1))
    return (folded * _turns(size, wide).conj()).real * _scale(size, wide)


def from_cosines(coefficients: Tensor) -> Tensor:
    """The inverse of `cosines`."""
    wide, size = widened(coefficients), coefficients.shape[-1]
    plain = wide / _scale(size, wide)
    mirrored = torch.cat([torch.zeros_like(plain[..., :1]), plain[..., 1:].flip(-1)], -1)
    folded = torch.fft.ifft(torch.complex(plain, -mirrored) * _turns(size, wide)).real
    x = torch.empty_like(folded)
    half = (size + 1) // 2
    x[..., ::2], x[..., 1::2] = folded[..., :half], folded[..., half:].flip(-1)
    return x


def shortened(x: Tensor, length: int) -> Tensor:
    """x (b, T, D) with `length` tokens that keep its lowest frequencies; (b, length, D), of the type of x.

    As in the authors' code amplitudes are not rescaled: a constant grows by sqrt(T / length).
    """
    return from_cosines(cosines(x.transpose(1, 2))[..., :length]).transpose(1, 2).to(x.dtype)


def shortened_attention(x: Tensor, length: int, heads: int, maps: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Attention of a shortened sequence to itself.

    Args:
        x: (b, T, D).
        length: tokens that are left.
        heads: H.
        maps: weight (D, D) and bias (D,) of queries, of keys and of values.

    Returns:
        The shortened sequence (b, length, D), which is the residual, and (b, H, length, D/H) before the output map.
    """
    short = shortened(x, length)
    queries, keys, values = (
        torch.nn.functional.linear(short, weight, bias).unflatten(-1, (heads, -1)).transpose(1, 2)
        for weight, bias in zip(maps[::2], maps[1::2], strict=True)
    )
    logits = widened(queries @ keys.transpose(-1, -2)) / math.sqrt(queries.shape[-1])
    return short, logits.softmax(-1).to(values.dtype) @ values


def _waves(size: int, like: Tensor) -> tuple[Tensor, Tensor]:
    steps = torch.arange(size, device=like.device)
    angles = torch.outer(steps, steps).remainder(size).to(like.dtype) * (2 * math.pi / size)
    return angles.cos(), angles.sin()


def _turns(size: int, like: Tensor) -> Tensor:
    angles = torch.arange(size, device=like.device, dtype=like.dtype) * (math.pi / (2 * size))
    return torch.complex(angles.cos(), angles.sin())


def _scale(size: int, like: Tensor) -> Tensor:
    scale = torch.full((size,), math.sqrt(2 / size), device=like.device, dtype=like.dtype)
    scale[0] = math.sqrt(1 / size)
    return scale
