"""What a run is, in one line, before it starts."""

from brt_dist.config.schema import Config
from brt_dist.planning.memory import plan_of
from launch.run.dataset_record import dataset_tokens
from launch.run.sizes import with_vocabulary


def size_line(config: Config) -> str | None:
    """Parameters, tokens, epochs and FLOPs of a run; None if the vocabulary of its data is not known here."""
    known = with_vocabulary(config, ask_servers=False)
    if known is None:
        return None
    plan, steps = plan_of(known), config.run.steps
    tokens = plan.tokens_per_step * steps
    sizes = [dataset_tokens(place) for place, _ in config.data.training]
    total = sum(size for size in sizes if size is not None)
    epochs = f" ({tokens / total:.3g} epochs of {total:,})" if len(sizes) == 1 and total else ""
    length = f"{steps:,} steps of {plan.tokens_per_step:,} tokens: {tokens:,} tokens{epochs}"
    return f"{plan.parameters:,} parameters; {length}, {plan.flops_per_step * steps:.2g} FLOPs"
