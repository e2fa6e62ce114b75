"""Memory of a rank at the peak of a step, by kind.

Weights, their masters, optimizer state and streams are always there.  The rest comes and goes, and most of it is there

* when the loss of a micro-batch is known: all activations, and what the loss is computed with;
* during the backward pass of a layer: activations of this layer and those before it, gradients of those after it;
* when the backward pass ends, at the token embedding, whose two gradients are added up;
* when gradients are reduced, or in the update, without any activations.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from itertools import groupby
from typing import NamedTuple

from brt_dist.config.schema import ParallelConfig
from brt_dist.config.zero_rules import scatters_sums
from brt_dist.planning.activations import head_activations, local_segment, logits_workspace, table_gradient
from brt_dist.planning.execution import ON_GPU, Execution
from brt_dist.planning.gradients import Bytes, GradientMemory, gradient_memory
from brt_dist.planning.model_sizes import ModelSizes

_MASTER = 4  # bytes of a float32


@dataclass(frozen=True)
class RankMemory:
    """Bytes of a rank at the peak of a step.

    Attributes:
        weights: in the precision of the run.
        gradients: of weights, and their sums over micro-batches.
        masters: float32 weights.
        optimizer: its state.
        buckets: through which gradients are reduced and ZeRO-3 gathers weights, and temporaries of the update.
        activations: of the micro-batches between forward and backward.
        streams: memory of streams on the device, both slots or those in flight.
        logits: what the loss is computed with, on the last stage; 0 if the peak is at another time.
        workspace: what a layer's backward pass needs: what it recomputes, gradients and temporaries; or likewise 0.
        host_streams: memory of streams in host memory.
        host_offloaded: what ZeRO keeps in host memory.
    """

    weights: int
    gradients: int
    masters: int
    optimizer: int
    buckets: int
    activations: int
    streams: int
    logits: int
    workspace: int
    host_streams: int = 0
    host_offloaded: int = 0

    @cached_property
    def device(self) -> int:
        return sum(size for _, size in self.parts())

    @property
    def host(self) -> int:
        return self.host_streams + self.host_offloaded

    def parts(self) -> Iterator[tuple[str, int]]:
        """Name and bytes of what is on the device."""
        return ((one.name, getattr(self, one.name)) for one in fields(self) if not one.name.startswith("host_"))

    def to_json(self) -> dict[str, int]:
        return {**asdict(self), "device": self.device, "host": self.host}


def rank_memory(sizes: ModelSizes, parallel: ParallelConfig, stage: int, execution: Execution = ON_GPU) -> RankMemory:
    """Memory of each rank of a stage."""
    config = sizes.on(parallel)
    held, local = sizes.held(parallel, stage), local_segment(config, execution)
    begun = min(parallel.pipeline - stage, config.micro_batches)  # 1F1B: micro-batches between forward and backward
    micro_batch = held.carried * parallel.micro_batch
    slots = 2 * micro_batch * config.micro_batches
    on_host = parallel.stream_memory == "host"
    # one more arrives and one returns meanwhile; see `planning.memory`
    streams = (begun + 2 * execution.copies_beside) * micro_batch if on_host else slots
    shards = parallel.data if parallel.zero_stage else 1
    has_masters = parallel.zero_stage > 0 or local.itemsize == 2
    masters = _MASTER * held.parameters // shards if has_masters else 0
    state = held.optimizer - masters
    if parallel.zero.offload_optimizer != "none":
        masters = state = 0
    weights = held.weights if parallel.zero.offload_parameters == "none" else 0
    # of gradients and buffers the accounting has those in host memory too
    rest = held.device - 2 * held.carried - weights - masters - state
    buckets = min(held.buckets, rest)
    gradients = gradient_memory(config, sizes.parameters(parallel, stage), Bytes(rest - buckets, buckets), execution)
    moments = _moments(sizes, parallel, stage, gradients, execution)
    peak = max(moments, key=sum)
    return RankMemory(
        weights=weights,
        masters=masters,
        optimizer=state,
        streams=streams,
        host_streams=slots if on_host else 0,
        host_offloaded=held.host,
        **peak._asdict(),
    )


class _Moment(NamedTuple):
    """Bytes that are only there for a time, see :class:`RankMemory`."""

    gradients: int
    buckets: int
    activations: int = 0
    logits: int = 0
    workspace: int = 0


def _moments(
    sizes: ModelSizes, parallel: ParallelConfig, stage: int, gradients: GradientMemory, execution: Execution
) -> Iterator[_Moment]:
    """What is there at the moments named above."""
    config, model = sizes.on(parallel), sizes.config.model
    local, is_last = local_segment(config, execution), stage == parallel.pipeline - 1
    begun = min(parallel.pipeline - stage, config.micro_batches)
    layers = [sizes.kinds[layer] for layer in sizes.stages(parallel)[stage]]
    costs = {kind: sizes.activations(kind, local, parallel.recompute) for kind in set(layers)}
    # the input from the previous stage is a layer's input; the output is kept as well
    outside = local.hidden(model.width) if parallel.pipeline > 1 else 0
    below, head = model.repeat * sum(costs[kind].kept for kind in layers), 0
    if is_last:
        head = head_activations(model, local)
    others = (begun - 1) * (below + head + outside) + outside  # of other micro-batches

    before, during, everything = gradients.before, gradients.backward, others + below + head
    yield _Moment(before.gradients, before.buckets + gradients.gathered, everything)
    yield _Moment(*before, everything, logits_workspace(model, local, execution) if is_last else 0)
    table = table_gradient(model, local)
    # the loss leaves the gradient of a tied embedding until the first layer's is added to it
    new = table if is_last and stage == 0 else gradients.made * table // local.itemsize if is_last else 0
    for kind, alike in groupby(layers[::-1] * model.repeat):
        kept, workspace = costs[kind].kept, costs[kind].workspace
        made = gradients.made * sum(sizes.layer_sizes(kind, parallel.tensor)) // model.repeat
        if model.feedback:  # blocks, not layers, run one by one
            kept = made = 0
        count = len(list(alike))
        for done in {0, count - 1}:  # between them both change by equal steps
            yield _Moment(
                during.gradients + new + done * made, during.buckets, others + below - done * kept, workspace=workspace
            )
        below, new = below - count * kept, new + count * made
    if stage == 0:
        # two gradients and their sum; ZeRO-1 in bf16 copies it to float32
        wide = table * _MASTER // local.itemsize if scatters_sums(config) else 0
        at_end = max(3 * table, table + wide) if is_last else table + wide
        yield _Moment(during.gradients + new - (table if is_last else 0), during.buckets, others, workspace=at_end)
    yield from (_Moment(*at) for at in gradients.after)
