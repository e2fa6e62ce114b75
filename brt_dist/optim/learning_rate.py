"""Learning rate as a function of the number of the step.

Of the step, not of the update: a step without an update (its gradient was not finite, or adjustments.json skips it)
advances the schedule like any other, so the rate of step N is known before the run and is the same after a resume.
"""

import math

from brt_dist.optim.base import OptimizerKind


def learning_rate(step: int, total: int, config: OptimizerKind) -> float:
    """Rate of step number `step`.

    Linear warm-up to `config.learning_rate`, then
    constant: that rate; rsqrt: falls with 1/sqrt(step), as in the paper (with warm-up 1000 its peak is
    1/sqrt(1000) = 0.0316); cosine: falls to `final_ratio` of the peak at step `total`.

    Args:
        step: its number, 1 for the first.
        total: steps of the run.
        config: peak, warm-up and schedule.

    Returns:
        The rate, before the factor in adjustments.json.
    """
    peak, warmup = config.learning_rate, config.warmup_steps
    if step < warmup:
        return peak * step / warmup
    if config.schedule == "constant":
        return peak
    if config.schedule == "rsqrt":
        return peak * math.sqrt(max(warmup, 1) / max(step, 1))
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    low = peak * config.final_ratio
    return low + (peak - low) * 0.5 * (1.0 + math.cos(math.pi * progress))
