"""Triton kernels that read a row once: norms and unit length, and softmax over a tile of the vocabulary.

All sums are in float32 and in a fixed order.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

ELEMENTS = 4096  # elements that a program works on at a time
PROGRAMS = 1024  # that share the rows whose gradients are summed
SOFTMAX = 4096  # columns of a softmax at a time

_NONE, _COLUMNS, _HEADS = 0, 1, 2  # what a weight belongs to


def normalise(
    x: Tensor, weight: Tensor | None, count: int, epsilon: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """x / sqrt(sum(x²)/count + epsilon) * weight, and 1/sqrt(...) of each row in float32 (rows,).

    Args:
        x: (..., C), of at most five dimensions.
        weight: (C,) or (1, ..., C), or (h, 1, 1) with x (..., h, n, C), or None.
        dtype: of the result.
    """
    x = x if x.stride(-1) == 1 else x.contiguous()
    out = torch.empty_like(x, dtype=dtype)
    rows, columns = x.numel() // x.shape[-1], x.shape[-1]
    inverse = torch.empty(rows, dtype=torch.float32, device=x.device)
    tile = _tile(columns)
    _normalise[(triton.cdiv(rows, tile["R"]),)](
        x, x if weight is None else weight, out, inverse, rows, columns, *_extents(x), *_strides(x), *_strides(out),
        1.0 / count, epsilon, KIND=_kind(weight), **tile,
    )  # fmt: skip
    return out, inverse


def normalise_backward(
    gradient: Tensor, x: Tensor, weight: Tensor | None, inverse: Tensor, count: int
) -> tuple[Tensor, Tensor | None]:
    """Gradients of x and of the weight (float32)."""
    x, gradient = (y if y.stride(-1) == 1 else y.contiguous() for y in (x, gradient))
    of_x = torch.empty_like(x)
    rows, columns = x.numel() // x.shape[-1], x.shape[-1]
    kind, tile = _kind(weight), _tile(columns)
    groups = triton.cdiv(rows, tile["R"])
    programs = min(groups, PROGRAMS)
    shape = {_NONE: (1,), _COLUMNS: (programs, columns), _HEADS: (rows,)}[kind]
    sums = torch.empty(shape, dtype=torch.float32, device=x.device)
    _normalise_backward[(programs,)](
        gradient, x, x if weight is None else weight, inverse, of_x, sums, rows, columns, triton.cdiv(groups, programs),
        *_extents(x), *_strides(gradient), *_strides(x), *_strides(of_x), 1.0 / count, KIND=kind, **tile,
    )  # fmt: skip
    if weight is None:
        return of_x, None
    if kind == _COLUMNS:
        return of_x, sums.sum(0).view(weight.shape)
    return of_x, sums.view(x.shape[:-1]).unsqueeze(-1).sum_to_size(weight.shape)


def softmax_scan(logits: Tensor, valid: int) -> tuple[Tensor, Tensor]:
    """The largest of the first `valid` logits of each row (n, c), and the sum of exp(logit - largest); float32 (n,)."""
    largest, total = (torch.empty(len(logits), dtype=torch.float32, device=logits.device) for _ in range(2))
    _softmax_scan[(len(logits),)](logits, largest, total, logits.stride(0), valid, COLUMNS=SOFTMAX, num_warps=8)
    return largest, total


def softmax_slope(logits: Tensor, valid: int, largest: Tensor, total: Tensor, place: Tensor, factor: Tensor) -> Tensor:
    """(softmax - 1 at `place`) * factor of each row, in the place of the logits (n, c).

    Args:
        largest, total: of each whole row, which the logits may be a part of.
        place: (n,) int64 the target's column, negative where it is in another part.
        factor: (n,) float32.
    """
    grid = (len(logits), triton.cdiv(logits.shape[1], SOFTMAX))
    _softmax_slope[grid](
        logits,
        largest,
        total,
        place,
        factor.contiguous(),
        logits.stride(0),
        logits.shape[1],
        valid,
        COLUMNS=SOFTMAX,
        num_warps=8,
    )
    return logits


def _kind(weight: Tensor | None) -> int:
    if weight is None:
        return _NONE
    return _COLUMNS if weight.dim() == 1 or weight.shape[-1] > 1 else _HEADS


def _tile(columns: int) -> dict[str, Any]:
    wide = triton.next_power_of_2(columns)
    return {"R": max(1, ELEMENTS // wide), "C": wide, "num_warps": 4 if wide <= ELEMENTS else 8}


def _extents(x: Tensor) -> tuple[int, ...]:
    """Sizes of the last three of four dimensions of rows."""
    return (1, 1, 1, *x.shape[:-1])[-3:]


def _strides(x: Tensor) -> tuple[int, ...]:
    return (0, 0, 0, 0, *x.stride()[:-1])[-4:]


@triton.jit
def _places(rows, d1, d2, d3, s0, s1, s2, s3):
    """Where rows begin."""
    rows = rows.to(tl.int64)
    return rows // d3 // d2 // d1 * s0 + rows // d3 // d2 % d1 * s1 + rows // d3 % d2 * s2 + rows % d3 * s3


@triton.jit
def _normalise(
    x, weight, out, inverse, count, columns, d1, d2, d3, x0, x1, x2, x3, o0, o1, o2, o3, share, epsilon,
    KIND: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    rows, places = tl.program_id(0) * R + tl.arange(0, R), tl.arange(0, C)
    inside = (rows[:, None] < count) & (places[None, :] < columns)
    from_x = x + _places(rows, d1, d2, d3, x0, x1, x2, x3)[:, None] + places[None, :]
    wide = tl.load(from_x, mask=inside, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide, 1) * share + epsilon)
    tl.store(inverse + rows, scale, mask=rows < count)
    wide = wide * scale[:, None]
    if KIND == 1:
        wide *= tl.load(weight + places, mask=places < columns, other=0.0).to(tl.float32)[None, :]
    if KIND == 2:
        wide *= tl.load(weight + rows // d3 % d2, mask=rows < count, other=0.0).to(tl.float32)[:, None]
    to = out + _places(rows, d1, d2, d3, o0, o1, o2, o3)[:, None] + places[None, :]
    tl.store(to, wide.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _normalise_backward(
    gradient, x, weight, inverse, of_x, sums, count, columns, each, d1, d2, d3,
    g0, g1, g2, g3, x0, x1, x2, x3, o0, o1, o2, o3, share,
    KIND: tl.constexpr, R: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    places = tl.arange(0, C)
    of_weight = tl.zeros((C,), tl.float32)
    for group in range(tl.program_id(0) * each, (tl.program_id(0) + 1) * each):
        rows = group * R + tl.arange(0, R)
        inside = (rows[:, None] < count) & (places[None, :] < columns)
        from_x = x + _places(rows, d1, d2, d3, x0, x1, x2, x3)[:, None] + places[None, :]
        from_g = gradient + _places(rows, d1, d2, d3, g0, g1, g2, g3)[:, None] + places[None, :]
        wide = tl.load(from_x, mask=inside, other=0.0).to(tl.float32)
        slope = tl.load(from_g, mask=inside, other=0.0).to(tl.float32)
        scale = tl.load(inverse + rows, mask=rows < count, other=0.0)
        if KIND == 1:
            of_weight += tl.sum(slope * wide * scale[:, None], 0)
            slope *= tl.load(weight + places, mask=places < columns, other=0.0).to(tl.float32)[None, :]
        if KIND == 2:
            tl.store(sums + rows, tl.sum(slope * wide, 1) * scale, mask=rows < count)
            slope *= tl.load(weight + rows // d3 % d2, mask=rows < count, other=0.0).to(tl.float32)[:, None]
        back = tl.sum(slope * wide, 1) * scale * scale * scale * share
        to = of_x + _places(rows, d1, d2, d3, o0, o1, o2, o3)[:, None] + places[None, :]
        tl.store(to, (slope * scale[:, None] - wide * back[:, None]).to(of_x.dtype.element_ty), mask=inside)
    if KIND == 1:
        tl.store(sums + tl.program_id(0).to(tl.int64) * columns + places, of_weight, mask=places < columns)


@triton.jit
def _softmax_scan(logits, largest, total, stride, valid, COLUMNS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    most = tl.full((COLUMNS,), -3.0e38, tl.float32)
    sums = tl.zeros((COLUMNS,), tl.float32)
    for start in range(0, valid, COLUMNS):
        columns = start + tl.arange(0, COLUMNS)
        here = tl.load(logits + row * stride + columns, mask=columns < valid, other=float("-inf")).to(tl.float32)
        above = tl.maximum(most, here)
        sums = sums * tl.exp(most - above) + tl.exp(here - above)
        most = above
    top = tl.max(most, 0)
    tl.store(largest + row, top)
    tl.store(total + row, tl.sum(sums * tl.exp(most - top), 0))


@triton.jit
def _softmax_slope(logits, largest, total, place, factor, stride, size, valid, COLUMNS: tl.constexpr):
    row, columns = tl.program_id(0).to(tl.int64), tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    here = tl.load(logits + row * stride + columns, mask=columns < valid, other=float("-inf")).to(tl.float32)
    weights = tl.exp(here - tl.load(largest + row)) / tl.load(total + row)
    weights -= tl.where(columns == tl.load(place + row), 1.0, 0.0)
    slope = (weights * tl.load(factor + row)).to(logits.dtype.element_ty)
    tl.store(logits + row * stride + columns, slope, mask=columns < size)
