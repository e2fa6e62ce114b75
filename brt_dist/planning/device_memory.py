"""Memory of a rank at the peak of a step, by kind."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from functools import cached_property

from brt_dist.config.schema import ParallelConfig
from brt_dist.planning.activations import head_activations, local_segment, logits_workspace
from brt_dist.planning.model_sizes import ModelSizes

_MASTER = 4  # bytes of a float32


@dataclass(frozen=True)
class RankMemory:
    """Bytes of a rank at the peak of a step.

    Attributes:
        weights: in the precision of the run.
        gradients: and their sums over micro-batches.
        masters: float32 weights.
        optimizer: its state.
        buckets: through which gradients are reduced, and ZeRO-3 gathers weights.
        activations: of the micro-batches between forward and backward.
        streams: memory of streams on the device, both slots or those in flight.
        logits: what the loss is computed with, on the last stage.
        workspace: what the backward of a layer needs: what it computes again, gradients and temporaries.
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


def rank_memory(sizes: ModelSizes, parallel: ParallelConfig, stage: int) -> RankMemory:
    """Memory of each rank of a stage."""
    config, model = sizes.on(parallel), sizes.config.model
    held, local = sizes.held(parallel, stage), local_segment(config)
    counts = sizes.counts(parallel, stage)
    layers = {kind: sizes.activations(kind, local, parallel.recompute) for kind in counts}
    begun = min(parallel.pipeline - stage, config.micro_batches)  # 1F1B: micro-batches between forward and backward
    kept = model.repeat * sum(layers[kind].kept * count for kind, count in counts.items())
    logits = 0
    if stage == parallel.pipeline - 1:
        kept += head_activations(model, local)
        logits = logits_workspace(model, local)
    if parallel.pipeline > 1:  # what came from the stage before is an input of a layer; what goes on is kept as well
        kept += local.hidden(model.width)
    workspace = max(layer.workspace for layer in layers.values())
    micro_batch = held.carried * parallel.micro_batch
    slots = 2 * micro_batch * config.micro_batches
    on_host = parallel.stream_memory == "host"
    # one more comes and one goes back meanwhile; see `planning.memory`
    streams = (begun + 2) * micro_batch if on_host else slots
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
    return RankMemory(
        weights=weights,
        gradients=rest - buckets,
        masters=masters,
        optimizer=state,
        buckets=buckets,
        activations=begun * kept,
        streams=streams,
        logits=logits,
        # the loss is done before the first layer's backward begins
        workspace=max(workspace - logits, 0),
        host_streams=slots if on_host else 0,
        host_offloaded=held.host,
    )
