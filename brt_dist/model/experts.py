"""Sparse mixtures of experts with sigmoid routing (sigma-MoE, arXiv 2310.10837).

Scores of experts are sigmoids and are not normalised over the chosen ones, so experts do not compete.
"""

import torch
from torch import Tensor

from brt_dist.model.norms import widened


def chosen_experts(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` experts with the largest logits (..., experts): scores and indices, (..., count)."""
    scores, index = torch.sigmoid(widened(logits)).topk(count, dim=-1, sorted=False)
    return scores, index


def mixed(x: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """Each input times the matrices of the experts that it chose.  The host reads the sizes of the groups.

    Args:
        x: (n, inputs).
        index: (n, k) experts.
        weights: (experts, inputs, outputs).

    Returns:
        (n, k, outputs).
    """
    return _by_expert(x, index, weights, index.shape[1])


def each(x: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """As `mixed`, with an input of its own for each choice: x (n, k, inputs)."""
    return _by_expert(x.flatten(0, 1), index, weights, 1)


def _by_expert(rows: Tensor, index: Tensor, weights: Tensor, uses: int) -> Tensor:
    order = index.flatten().argsort(stable=True)
    sizes = torch.bincount(index.flatten(), minlength=len(weights)).tolist()
    groups = rows[order // uses].split(sizes)
    made = torch.cat([group @ matrix for group, matrix in zip(groups, weights, strict=True)])
    return made.new_empty(made.shape).index_copy(0, order, made).view(*index.shape, -1)


def sigma_moe(x: Tensor, logits: Tensor, keys: Tensor, values: Tensor, count: int) -> Tensor:
    """sum_e score_e relu(x K_e) V_e over the chosen experts.

    Args:
        x: (..., D).
        logits: (..., experts) of the router.
        keys: (experts, D, width).
        values: (experts, width, D).
    """
    scores, index = chosen_experts(logits.flatten(0, -2), count)
    hidden = torch.relu(mixed(x.flatten(0, -2), index, keys))
    out = (each(hidden, index, values) * scores.to(x.dtype).unsqueeze(-1)).sum(1)
    return out.view(*x.shape[:-1], -1)
