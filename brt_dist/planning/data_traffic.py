"""Traffic between data parallel ranks in a step, and how much of its time is exposed."""

from collections.abc import Sequence
from typing import NamedTuple

from brt_dist.config.schema import ParallelConfig
from brt_dist.config.zero import BUCKET, SCATTERED_BUCKET
from brt_dist.config.zero_rules import scatters_sums
from brt_dist.planning.activations import local_segment
from brt_dist.planning.devices import DeviceSpec
from brt_dist.planning.model_sizes import ModelSizes
from brt_dist.planning.stage_time import StageTime, exposed, rate_in_group


class Calls(NamedTuple):
    """Collectives over data parallel ranks that go through all parameters once."""

    reduce: int
    gather: int


def data_calls(sizes: ModelSizes, parallel: ParallelConfig, stage: int) -> Calls:
    """How many collectives reduce the gradients of a rank of a stage, and gather its weights.

    Each carries a bucket.  ZeRO-1 in bf16 cuts the groups of the optimizer into buckets, and gathers each of them: one
    group has the weights of linear maps, the other the token embedding and vectors.
    """
    held, zero = sizes.parameters(parallel, stage), parallel.zero
    if scatters_sums(sizes.on(parallel)):
        size = zero.reduce_bucket or SCATTERED_BUCKET
        kinds = (sizes.kinds[layer] for layer in sizes.stages(parallel)[stage])
        maps = [elements for kind in kinds for elements in sizes.linear_sizes(kind, parallel.tensor)]
        others = [held.table, held.count - held.table - sum(maps)]
        groups = _filled(maps, size) + _filled([elements for elements in others if elements], size)
        return Calls(groups, groups)
    reduced = -(-held.count // (zero.reduce_bucket or BUCKET))
    at_once = max(zero.prefetch_bucket, held.largest) if parallel.zero_stage == 3 else zero.gather_bucket
    return Calls(reduced, -(-held.count // at_once))


def data_seconds(
    sizes: ModelSizes, parallel: ParallelConfig, stage: int, device: DeviceSpec, time: StageTime
) -> tuple[float, float]:
    """Seconds of a step to reduce gradients over data parallel ranks, and to gather weights.

    Args:
        sizes: of the model.
        parallel: the layout.
        stage: whose ranks.
        device: of every rank.
        time: of the stage for a micro-batch, beside which some of it runs.
    """
    if parallel.data == 1:
        return 0.0, 0.0
    config = sizes.on(parallel)
    count, itemsize = sizes.held(parallel, stage).parameters, local_segment(config).itemsize
    ring, others = (parallel.data, parallel.tensor), (parallel.data - 1) / parallel.data
    calls = data_calls(sizes, parallel, stage)
    moved = others / rate_in_group(device, *ring)  # seconds for each byte of half a sum
    reduced = count * (2 if parallel.zero.reduce_dtype == "bf16" else 4)
    summing, passing = device.least_seconds(*ring), device.least_seconds(*ring, "gather")
    sums = reduced * others / rate_in_group(device, *ring, "scatter") + calls.reduce * passing
    weights = count * itemsize * others / rate_in_group(device, *ring, "gather") + calls.gather * passing
    # DeepSpeed sums on all ranks, and each keeps its part
    reduce, gather = 2 * reduced * moved + calls.reduce * summing, weights
    micro_batches = config.micro_batches
    if parallel.zero_stage == 0:
        reduce, gather = 2 * count * itemsize * moved + calls.reduce * summing, 0.0
    elif scatters_sums(config):
        reduce = sums if parallel.zero.overlap is False else exposed(sums, time.backward, device)  # the last backward
    elif parallel.zero_stage == 2:
        reduce *= micro_batches
    elif parallel.zero_stage == 3:
        reduce = micro_batches * exposed(sums + 2 * weights, time.compute, device)
        gather = 0.0
    return reduce, gather


def _filled(parameters: Sequence[int], size: int) -> int:
    """Buckets of at most `size` elements, or one parameter, that parameters fill in their order."""
    buckets, filled = 0, size
    for elements in parameters:
        if filled + elements > size:
            buckets, filled = buckets + 1, 0
        filled += elements
    return buckets
