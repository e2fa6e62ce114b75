"""A layout for fewer nodes: fewer data parallel ranks, each with more streams.  Losses stay the same.

Every stream continues on some rank, so the global batch, and with it training, stays as configured.  Streams then need
not divide evenly (`parallel.uneven_streams`); otherwise losing one of 64 nodes could halve the run.
"""

from brt_dist.config.launch_rules import gpus_per_node
from brt_dist.config.schema import Config


def on_fewer_nodes(config: Config, nodes: int) -> Config | None:
    """Fit a config to at most `nodes` nodes, using as many ranks as possible, and with those as many nodes.

    Only parallel.data, parallel.uneven_streams and launch.nodes change.  No node gets more ranks than it had.

    Returns:
        The config; None if it does not fit.
    """
    parallel, launch = config.parallel, config.launch
    local = parallel.world_size // launch.nodes
    model = parallel.tensor * parallel.pipeline
    inside = parallel.tensor if gpus_per_node(config) else 1  # ranks that must be on one node
    units = config.data.streams // parallel.micro_batch
    for data in range(min(nodes * local // model, units), 0, -1):
        ranks = model * data
        for count in range(min(nodes, ranks), 0, -1):
            if ranks % count == 0 and ranks // count <= local and ranks // count % inside == 0:
                uneven = parallel.uneven_streams or units % data > 0
                layout = parallel.model_copy(update={"data": data, "uneven_streams": uneven})
                nodes_now = launch.model_copy(update={"nodes": count})
                return config.model_copy(update={"parallel": layout, "launch": nodes_now})
    return None
