"""The Triton kernels of `triton.py`, and how they are started.

A program works on a tile of queries or keys of one head of one block of one stream.  In a band (`is_band`) query i sees
keys i to i + n - 1 of 2n and a bias that depends on the distance alone; without, it sees all keys.  Tile sizes are
fixed rather than tuned at run time, because other tiles would change the sums.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

PROGRAMS = 1024  # wanted for the gradient of the bias


@dataclass(frozen=True)
class Sizes:
    """Streams, blocks, heads, queries and keys of a block, size of a head; and which keys a query sees."""

    streams: int
    blocks: int
    heads: int
    queries: int
    keys: int
    size: int
    is_band: bool

    @property
    def all_heads(self) -> int:
        """Heads of all blocks of all streams."""
        return self.streams * self.blocks * self.heads


def forward(
    sizes: Sizes, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, dropped: Tensor | None, factor: float
) -> tuple[Tensor, Tensor]:
    """Attention (b, t, h, n, E), and the logarithm of each query's sum of exponentials (b, t, h, n) in float32.

    Args:
        sizes: of all tensors.
        q: (b, t, h, n, E), in any layout that has E last.
        k, v: (b, t, h, m, E), likewise.
        bias: (h, n) of the visible keys, the farthest first; None unless `is_band`.
        dropped: (b, h, n, m) uint8, not 0 where a probability is dropped; or None.
        factor: of the probabilities that are kept.
    """
    out = torch.empty(q.shape, dtype=v.dtype, device=q.device)
    logarithms = torch.empty(q.shape[:-1], dtype=torch.float32, device=q.device)
    tile = _tiles(sizes, q, (128, 64))
    _forward[(triton.cdiv(sizes.queries, tile["M"]), sizes.all_heads)](
        q, k, v, _or(bias, q), _or(dropped, q), out, logarithms, *_strides(q, k, v, out), *_extents(sizes, bias),
        factor, **_kinds(sizes, q, dropped), **tile, num_warps=8 if tile["M"] == 128 else 4,
    )  # fmt: skip
    return out, logarithms


def backward(
    sizes: Sizes, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, dropped: Tensor | None, factor: float,
    out: Tensor, logarithms: Tensor, gradient: Tensor, needs_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:  # fmt: skip
    """Gradients of q, k, v and of the bias, from that of the result (b, t, h, n, E)."""
    of_q, of_k, of_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    deltas = torch.empty_like(logarithms)
    tile = _tiles(sizes, q, (64, 64))
    given = (q, k, v, _or(bias, q), _or(dropped, q), gradient, logarithms, deltas)
    extents, kinds = _extents(sizes, bias), _kinds(sizes, q, dropped)
    _gradient_of_queries[(triton.cdiv(sizes.queries, tile["M"]), sizes.all_heads)](
        *given, out, of_q, *_strides(q, k, v, gradient, out, of_q), *extents, factor, **kinds, **tile, num_warps=4
    )
    _gradient_of_keys[(triton.cdiv(sizes.keys, tile["N"]), sizes.all_heads)](
        *given, of_k, of_v, *_strides(q, k, v, gradient, of_k, of_v), *extents, factor, **kinds, **tile, num_warps=4
    )
    of_bias = None
    if bias is not None and needs_bias:
        across = triton.cdiv(
            sizes.queries + tile["M"] + tile["N"], tile["N"]
        )  # tiles of keys that a tile of queries sees
        down, samples = triton.cdiv(sizes.queries, tile["M"]), sizes.streams * sizes.blocks
        parts = min(samples, triton.cdiv(PROGRAMS, across * down * sizes.heads))
        sums = torch.empty(parts, sizes.heads, sizes.queries, sizes.keys, dtype=torch.float32, device=q.device)
        _gradient_of_bias[(across * down, sizes.heads, parts)](
            *given, sums, *_strides(q, k, v, gradient), *extents, factor, triton.cdiv(samples, parts), samples, across,
            **kinds, **tile, num_warps=4,
        )  # fmt: skip
        of_bias = _along_diagonals(sums.sum(0))
    return of_q, of_k, of_v, of_bias


def _along_diagonals(sums: Tensor) -> Tensor:
    """From (h, n, 2n), of which the band is defined, to sums over all queries by distance (h, n)."""
    heads, length, keys = sums.shape
    return sums.as_strided((heads, length, length), (length * keys, keys + 1, 1)).sum(1)


def _tiles(sizes: Sizes, q: Tensor, wanted: tuple[int, int]) -> dict[str, int]:
    """Queries and keys of a tile; smaller for float32, which takes the place of two, and for wide heads."""
    if q.dtype == torch.float32:
        wanted = (32, 32)
    elif sizes.size > 128:
        wanted = (min(wanted[0], 64), 32)
    most = (max(16, triton.next_power_of_2(rows)) for rows in (sizes.queries, sizes.keys))
    return dict(zip(("M", "N"), map(min, wanted, most), strict=True))


def _strides(*tensors: Tensor) -> list[int]:
    """Strides of streams, blocks, heads and rows, one tensor after the other."""
    return [stride for tensor in tensors for stride in tensor.stride()[:4]]


def _extents(sizes: Sizes, bias: Tensor | None) -> tuple[int, ...]:
    return sizes.queries, sizes.keys, sizes.blocks, sizes.heads, *(bias.stride() if bias is not None else (0, 0))


def _kinds(sizes: Sizes, q: Tensor, dropped: Tensor | None) -> dict[str, Any]:
    precision = "ieee" if q.dtype == torch.float32 else "tf32"  # of products; says nothing about bf16
    return {"E": sizes.size, "BAND": sizes.is_band, "DROPS": dropped is not None, "PRECISION": precision}


def _or(tensor: Tensor | None, other: Tensor) -> Tensor:
    """A pointer is needed even if nothing is read from it."""
    return other if tensor is None else tensor


@triton.jit
def _rows(base, stride_b, stride_t, stride_h, stride_n, z, blocks, heads, rows, E: tl.constexpr):
    """Pointers to rows (rows, E) of head number z of all heads of all blocks."""
    z = z.to(tl.int64)
    head, block, stream = z % heads, z // heads % blocks, z // heads // blocks
    base += stream * stride_b + block * stride_t + head * stride_h
    return base + rows.to(tl.int64)[:, None] * stride_n + tl.arange(0, E)[None, :]


@triton.jit
def _read(base, sb, st, sh, sn, z, blocks, heads, rows, count, E: tl.constexpr):
    """Rows of a head, zeros beyond the last one."""
    pointers = _rows(base, sb, st, sh, sn, z, blocks, heads, rows, E)
    return tl.load(pointers, mask=rows[:, None] < count, other=0.0)


@triton.jit
def _logits(q, k, bias, bias_h, bias_n, z, heads, queries, keys, n, m, BAND: tl.constexpr, PRECISION: tl.constexpr):
    """q·k + bias of a tile; -inf where a key is not visible."""
    logits = tl.dot(q, tl.trans(k), input_precision=PRECISION)
    seen = (queries[:, None] < n) & (keys[None, :] < m)
    if BAND:
        distance = keys[None, :] - queries[:, None]
        seen = seen & (distance >= 0) & (distance < n)
        logits += tl.load(bias + (z % heads) * bias_h + distance * bias_n, mask=seen, other=0.0)
    return tl.where(seen, logits, float("-inf"))


@triton.jit
def _kept(dropped, z, blocks, heads, queries, keys, n, m):
    """Whether the probabilities of a tile are kept."""
    stream, head = z // heads // blocks, z % heads
    base = dropped + (stream * heads + head).to(tl.int64) * n * m
    seen = (queries[:, None] < n) & (keys[None, :] < m)
    return tl.load(base + queries[:, None] * m + keys[None, :], mask=seen, other=1) == 0


@triton.jit
def _slopes(
    q, k, v, do, bias, bias_h, bias_n, dropped, logarithms, deltas, z, blocks, heads, queries, keys, n, m, factor,
    BAND: tl.constexpr, DROPS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """For a tile: what values were weighted with, and the gradient of the logits."""
    logits = _logits(q, k, bias, bias_h, bias_n, z, heads, queries, keys, n, m, BAND, PRECISION)
    weights = tl.exp(logits - logarithms[:, None])
    of_weights = tl.dot(do, tl.trans(v), input_precision=PRECISION)
    used = weights
    if DROPS:
        kept = _kept(dropped, z, blocks, heads, queries, keys, n, m)
        used = tl.where(kept, weights * factor, 0.0)
        of_weights = tl.where(kept, of_weights * factor, 0.0)
    return used, weights * (of_weights - deltas[:, None])


@triton.jit
def _forward(
    Q, K, V, bias, dropped, out, logarithms,
    q_b, q_t, q_h, q_n, k_b, k_t, k_h, k_n, v_b, v_t, v_h, v_n, o_b, o_t, o_h, o_n,
    n, m, blocks, heads, bias_h, bias_n, factor,
    E: tl.constexpr, BAND: tl.constexpr, DROPS: tl.constexpr, PRECISION: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    z, begin = tl.program_id(1), tl.program_id(0) * M
    queries = begin + tl.arange(0, M)
    q = _read(Q, q_b, q_t, q_h, q_n, z, blocks, heads, queries, n, E)
    largest = tl.full((M,), float("-inf"), tl.float32)
    total = tl.zeros((M,), tl.float32)
    read = tl.zeros((M, E), tl.float32)
    first, last = 0, m
    if BAND:
        first, last = begin // N * N, tl.minimum(m, begin + M - 1 + n)
    for start in range(first, last, N):
        keys = start + tl.arange(0, N)
        k = _read(K, k_b, k_t, k_h, k_n, z, blocks, heads, keys, m, E)
        logits = _logits(q, k, bias, bias_h, bias_n, z, heads, queries, keys, n, m, BAND, PRECISION)
        above = tl.maximum(largest, tl.max(logits, 1))
        shift = tl.where(above == float("-inf"), 0.0, above)  # a query that has seen no key yet
        weights = tl.exp(logits - shift[:, None])
        rescale = tl.exp(largest - shift)
        total = total * rescale + tl.sum(weights, 1)
        if DROPS:
            kept = _kept(dropped, z, blocks, heads, queries, keys, n, m)
            weights = tl.where(kept, weights * factor, 0.0)
        v = _read(V, v_b, v_t, v_h, v_n, z, blocks, heads, keys, m, E)
        read = read * rescale[:, None] + tl.dot(weights.to(v.dtype), v, input_precision=PRECISION)
        largest = above
    is_query = queries < n
    total = tl.where(is_query, total, 1.0)
    largest = tl.where(is_query, largest, 0.0)
    places = _rows(out, o_b, o_t, o_h, o_n, z, blocks, heads, queries, E)
    tl.store(places, (read / total[:, None]).to(out.dtype.element_ty), mask=is_query[:, None])
    tl.store(logarithms + z.to(tl.int64) * n + queries, largest + tl.log(total), mask=is_query)


@triton.jit
def _gradient_of_queries(
    Q, K, V, bias, dropped, DO, logarithms, deltas, OUT, of_q,
    q_b, q_t, q_h, q_n, k_b, k_t, k_h, k_n, v_b, v_t, v_h, v_n, d_b, d_t, d_h, d_n,
    o_b, o_t, o_h, o_n, x_b, x_t, x_h, x_n,
    n, m, blocks, heads, bias_h, bias_n, factor,
    E: tl.constexpr, BAND: tl.constexpr, DROPS: tl.constexpr, PRECISION: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Also leaves do·o of each query in `deltas`, for the kernels that follow."""
    z, begin = tl.program_id(1), tl.program_id(0) * M
    queries = begin + tl.arange(0, M)
    q = _read(Q, q_b, q_t, q_h, q_n, z, blocks, heads, queries, n, E)
    do = _read(DO, d_b, d_t, d_h, d_n, z, blocks, heads, queries, n, E)
    o = _read(OUT, o_b, o_t, o_h, o_n, z, blocks, heads, queries, n, E)
    delta = tl.sum(do.to(tl.float32) * o.to(tl.float32), 1)
    at = z.to(tl.int64) * n + queries
    tl.store(deltas + at, delta, mask=queries < n)
    logarithm = tl.load(logarithms + at, mask=queries < n, other=0.0)
    total = tl.zeros((M, E), tl.float32)
    first, last = 0, m
    if BAND:
        first, last = begin // N * N, tl.minimum(m, begin + M - 1 + n)
    for start in range(first, last, N):
        keys = start + tl.arange(0, N)
        k = _read(K, k_b, k_t, k_h, k_n, z, blocks, heads, keys, m, E)
        v = _read(V, v_b, v_t, v_h, v_n, z, blocks, heads, keys, m, E)
        _, slope = _slopes(
            q, k, v, do, bias, bias_h, bias_n, dropped, logarithm, delta, z, blocks, heads, queries, keys, n, m, factor,
            BAND, DROPS, PRECISION,
        )  # fmt: skip
        total += tl.dot(slope.to(k.dtype), k, input_precision=PRECISION)
    places = _rows(of_q, x_b, x_t, x_h, x_n, z, blocks, heads, queries, E)
    tl.store(places, total.to(of_q.dtype.element_ty), mask=queries[:, None] < n)


@triton.jit
def _gradient_of_keys(
    Q, K, V, bias, dropped, DO, logarithms, deltas, of_k, of_v,
    q_b, q_t, q_h, q_n, k_b, k_t, k_h, k_n, v_b, v_t, v_h, v_n, d_b, d_t, d_h, d_n,
    x_b, x_t, x_h, x_n, y_b, y_t, y_h, y_n,
    n, m, blocks, heads, bias_h, bias_n, factor,
    E: tl.constexpr, BAND: tl.constexpr, DROPS: tl.constexpr, PRECISION: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    z, begin = tl.program_id(1), tl.program_id(0) * N
    keys = begin + tl.arange(0, N)
    k = _read(K, k_b, k_t, k_h, k_n, z, blocks, heads, keys, m, E)
    v = _read(V, v_b, v_t, v_h, v_n, z, blocks, heads, keys, m, E)
    total_k = tl.zeros((N, E), tl.float32)
    total_v = tl.zeros((N, E), tl.float32)
    first, last = 0, n
    if BAND:
        first, last = tl.maximum(0, begin - n + 1) // M * M, tl.minimum(n, begin + N)
    for start in range(first, last, M):
        queries = start + tl.arange(0, M)
        q = _read(Q, q_b, q_t, q_h, q_n, z, blocks, heads, queries, n, E)
        do = _read(DO, d_b, d_t, d_h, d_n, z, blocks, heads, queries, n, E)
        at = z.to(tl.int64) * n + queries
        logarithm = tl.load(logarithms + at, mask=queries < n, other=0.0)
        delta = tl.load(deltas + at, mask=queries < n, other=0.0)
        used, slope = _slopes(
            q, k, v, do, bias, bias_h, bias_n, dropped, logarithm, delta, z, blocks, heads, queries, keys, n, m, factor,
            BAND, DROPS, PRECISION,
        )  # fmt: skip
        total_v += tl.dot(tl.trans(used.to(do.dtype)), do, input_precision=PRECISION)
        total_k += tl.dot(tl.trans(slope.to(q.dtype)), q, input_precision=PRECISION)
    is_key = keys[:, None] < m
    tl.store(_rows(of_k, x_b, x_t, x_h, x_n, z, blocks, heads, keys, E), total_k.to(of_k.dtype.element_ty), mask=is_key)
    tl.store(_rows(of_v, y_b, y_t, y_h, y_n, z, blocks, heads, keys, E), total_v.to(of_v.dtype.element_ty), mask=is_key)


@triton.jit
def _gradient_of_bias(
    Q, K, V, bias, dropped, DO, logarithms, deltas, sums,
    q_b, q_t, q_h, q_n, k_b, k_t, k_h, k_n, v_b, v_t, v_h, v_n, d_b, d_t, d_h, d_n,
    n, m, blocks, heads, bias_h, bias_n, factor, each, samples, across,
    E: tl.constexpr, BAND: tl.constexpr, DROPS: tl.constexpr, PRECISION: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """The gradient of the logits of a tile, summed over some blocks of some streams."""
    tile, head, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    begin = tile // across * M
    queries = begin + tl.arange(0, M)
    keys = (begin // N + tile % across) * N + tl.arange(0, N)
    total = tl.zeros((M, N), tl.float32)
    for sample in range(part * each, tl.minimum(samples, (part + 1) * each)):
        z = sample * heads + head
        q = _read(Q, q_b, q_t, q_h, q_n, z, blocks, heads, queries, n, E)
        k = _read(K, k_b, k_t, k_h, k_n, z, blocks, heads, keys, m, E)
        v = _read(V, v_b, v_t, v_h, v_n, z, blocks, heads, keys, m, E)
        do = _read(DO, d_b, d_t, d_h, d_n, z, blocks, heads, queries, n, E)
        at = z.to(tl.int64) * n + queries
        logarithm = tl.load(logarithms + at, mask=queries < n, other=0.0)
        delta = tl.load(deltas + at, mask=queries < n, other=0.0)
        _, slope = _slopes(
            q, k, v, do, bias, bias_h, bias_n, dropped, logarithm, delta, z, blocks, heads, queries, keys, n, m, factor,
            BAND, DROPS, PRECISION,
        )  # fmt: skip
        total += slope
    place = (part * heads + head).to(tl.int64) * n * m + queries[:, None] * m + keys[None, :]
    tl.store(sums + place, total, mask=(queries[:, None] < n) & (keys[None, :] < m))
