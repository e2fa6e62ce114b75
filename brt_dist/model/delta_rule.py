"""The delta rule (arXiv 2406.06484), with decay the gated one (2412.06464), in chunks.

For each head, with keys of unit length:

    S' = exp(g_t) S_{t-1}
    S_t = S' + k_t (beta_t (v_t - S'^T k_t))^T        what S' says about k_t moves towards v_t
    o_t = S_t^T q_t / sqrt(E)

Shapes: b streams, t chunks, h heads of this rank, C tokens of a chunk, E size of a key, M of a value.
"""

import torch
from torch import Tensor

from brt_dist.model.norms import widened


def delta_rule(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    rates: Tensor,
    decays: Tensor | None,
    state: Tensor,
    starts: Tensor,
) -> tuple[Tensor, Tensor]:
    """Read and write chunk by chunk; within a chunk all tokens at once, by a triangular system.

    With G the sum of g from the beginning of the chunk, the writes u_t = beta_t (v_t - S'^T k_t) of a chunk solve
    (1 + A) u = beta (v - exp(G) k S), where A_ij = beta_i exp(G_i - G_j) k_i·k_j for j < i and S enters the chunk.

    Args:
        queries: (b, t, h, C, E).
        keys: (b, t, h, C, E), of unit length.
        values: (b, t, h, C, M).
        rates: (b, t, h, C) beta, in [0, 1], or [0, 2] with negative eigenvalues.
        decays: (b, t, h, C) g <= 0, in logarithms; None: no decay.
        state: (b, h, E, M) before the first chunk.
        starts: (b, t) bool; where true the state that enters the chunk is zero.

    Returns:
        (b, t, h, C, M) and the state after the last chunk, in float32 at least.
    """
    queries, keys, values, rates = (widened(x) for x in (queries, keys, values, rates))
    queries = queries * queries.shape[-1] ** -0.5
    state, similar, read = widened(state), keys @ keys.transpose(-1, -2), (queries @ keys.transpose(-1, -2)).tril()
    into, left, whole = keys, keys, None
    if decays is not None:
        # the sums up to each token; cumsum counts as not deterministic on CUDA
        total = (widened(decays).unsqueeze(-2) * decays.new_ones(decays.shape[-1:] * 2).tril()).sum(-1)
        # masked before exp: above the diagonal exponents are positive and may overflow
        apart = total.unsqueeze(-1) - total.unsqueeze(-2)
        later = torch.ones_like(apart, dtype=torch.bool).triu(1)
        apart = apart.masked_fill(later, -torch.inf).exp()
        similar, read = similar * apart, read * apart
        since = total.exp().unsqueeze(-1)
        into, queries = keys * since, queries * since
        left = keys * (total[..., -1:] - total).exp().unsqueeze(-1)
        whole = since[..., -1:, :]
    targets = torch.cat([into, values], -1) * rates.unsqueeze(-1)
    solved = torch.linalg.solve_triangular(
        (similar * rates.unsqueeze(-1)).tril(-1), targets, upper=False, unitriangular=True
    )
    from_state, from_values = solved.split([keys.shape[-1], values.shape[-1]], -1)
    left = left.transpose(-1, -2)
    entering, writes = [], []
    for chunk in range(starts.shape[1]):
        state = state.masked_fill(starts[:, chunk, None, None, None], 0.0)
        entering.append(state)
        writes.append(from_values[:, chunk] - from_state[:, chunk] @ state)
        kept = state if whole is None else state * whole[:, chunk]
        state = kept + left[:, chunk] @ writes[-1]
    return queries @ torch.stack(entering, 1) + read @ torch.stack(writes, 1), state


def solve_flops(chunk: int, columns: int) -> int:
    """Of the triangular system of a chunk: a multiply-add for each pair of tokens and column, two operations."""
    return chunk * chunk * columns
