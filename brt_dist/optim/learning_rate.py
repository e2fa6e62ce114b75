"""Learning rate as a function of the number of the update."""

import math

from brt_dist.optim.base import OptimizerKind


def learning_rate(update: int, total: int, config: OptimizerKind) -> float:
    """Rate of update number `update` (1 for the first) of `total`.

    Linear warm-up to `config.learning_rate`, then
    constant: that rate; rsqrt: falls with 1/sqrt(update), as in the paper (with warm-up 1000 its peak is
    1/sqrt(1000) = 0.0316); cosine: falls to `final_ratio` of the peak at update `total`.
    """
    peak, warmup = config.learning_rate, config.warmup_steps
    if update < warmup:
        return peak * update / warmup
    if config.schedule == "constant":
        return peak
    if config.schedule == "rsqrt":
        return peak * math.sqrt(max(warmup, 1) / max(update, 1))
    progress = min(1.0, (update - warmup) / max(1, total - warmup))
    low = peak * config.final_ratio
    return low + (peak - low) * 0.5 * (1.0 + math.cos(math.pi * progress))
