"""A layout for fewer nodes: fewer data parallel ranks, each with more streams.  Losses stay the same."""

from brt_dist.config.rules import divisors
from brt_dist.config.schema import Config


def on_fewer_nodes(config: Config, nodes: int) -> Config | None:
    """Fit a config to at most `nodes` nodes, using as many ranks as possible.

    Only parallel.data and launch.nodes change.  No node gets more ranks than it had.

    Returns:
        The config; None if it does not fit.
    """
    parallel, launch = config.parallel, config.launch
    local = parallel.world_size // launch.nodes
    model = parallel.tensor * parallel.pipeline
    rows = divisors(config.data.streams // parallel.micro_batch, nodes * local // model)
    for data in sorted(rows, reverse=True):
        for count in range(min(nodes, model * data), 0, -1):
            if model * data % count == 0 and model * data // count <= local:
                return config.model_copy(
                    update={
                        "parallel": parallel.model_copy(update={"data": data}),
                        "launch": launch.model_copy(update={"nodes": count}),
                    }
                )
    return None
