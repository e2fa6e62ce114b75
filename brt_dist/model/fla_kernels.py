"""The delta rule with the Triton kernels of flash-linear-attention, if they are installed and there is a GPU.

Only this file knows that library (`fla`).  Its kernels take no mask of starts, but sequences of any length, one
after the other: a stream is cut where a document starts.  Finding the cuts waits for the device once per call.

The tests do not run it on a GPU; they replace the kernels with a loop.
"""

from functools import cache
from importlib import import_module
from importlib.util import find_spec

import torch
from torch import Tensor


@cache
def installed() -> bool:
    return find_spec("fla") is not None


def usable(values: Tensor) -> bool:
    """Whether the kernels can take this: they run on CUDA, and not in float32."""
    return values.is_cuda and values.dtype in (torch.bfloat16, torch.float16) and installed()


def delta_rule(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    rates: Tensor,
    decays: Tensor | None,
    state: Tensor,
    starts: Tensor,
) -> tuple[Tensor, Tensor]:
    """As `brt_dist.model.delta_rule.delta_rule`."""
    streams, chunks, heads, size, _ = queries.shape
    begins = starts.cpu().clone()
    begins[:, 0] = True
    first = torch.nonzero(begins.flatten()).flatten()
    cuts = torch.cat([first * size, torch.tensor([streams * chunks * size])]).to(queries.device)
    leading = torch.nonzero(first % chunks == 0).flatten().to(queries.device)  # the first piece of each stream
    last = torch.cat([leading[1:] - 1, leading.new_tensor([len(first) - 1])])

    entering = state.new_zeros(len(first), *state.shape[1:])
    entering = entering.index_copy(0, leading, state.masked_fill(starts[:, 0, None, None, None], 0.0))
    q, k, v, beta = (_packed(x.to(values.dtype)) for x in (queries, keys, values, rates))
    if decays is None:
        kernel = import_module("fla.ops.delta_rule").chunk_delta_rule
        read, left = kernel(q, k, v, beta, initial_state=entering, output_final_state=True, cu_seqlens=cuts)
    else:
        kernel = import_module("fla.ops.gated_delta_rule").chunk_gated_delta_rule
        g = _packed(decays)
        read, left = kernel(q, k, v, g=g, beta=beta, initial_state=entering, output_final_state=True, cu_seqlens=cuts)
    read = read.view(streams, chunks, size, heads, -1).transpose(2, 3)
    return read, left.index_select(0, last)


def _packed(x: Tensor) -> Tensor:
    """(b, t, h, C, ...) -> (1, b*t*C, h, ...)."""
    return x.transpose(2, 3).flatten(0, 2).unsqueeze(0).contiguous()
