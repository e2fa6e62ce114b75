"""How long a step takes, by part: device compute, host overhead, and exposed communication.

A model, not a measurement.  The device computes matrix products and attention, each at a share of the peak, and moves
activations through memory; the host needs some time for each operation.  A GPU works while the host prepares the next
operations, so the longer of the two counts; on a CPU they are one, and add up.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property

from brt_dist.config.schema import Config, ParallelConfig
from brt_dist.model.shapes import padded_vocab
from brt_dist.planning.activations import local_segment
from brt_dist.planning.data_traffic import data_seconds
from brt_dist.planning.device_memory import RankMemory
from brt_dist.planning.devices import DeviceSpec
from brt_dist.planning.model_sizes import ModelSizes
from brt_dist.planning.simulator.seconds import StageSeconds
from brt_dist.planning.stage_time import StageTime, rate_in_group, stage_time, waiting

_STEP_OPERATIONS, _WEIGHT_OPERATIONS = 180, 3  # of an update, and for each parameter, counted in a step of the engine


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step, by part; `total` is their sum.

    Attributes:
        compute: of the stage that takes longest.
        launches: time that its device waits for the host to launch operations; on a CPU all of the host's time.
        tensor: exposed collectives of tensor parallel ranks.
        pipeline: transfers between stages.
        streams: memory of streams to and from host memory, as far as compute does not hide it.
        bubble: waiting for micro-batches of other stages.
        reduce: exposed sums of gradients over data parallel ranks, and of both copies of the token embedding.
        gather: of weights over data parallel ranks.
        update: of the weights.
        data: waiting for data; none, as shards are prefetched and a step reads little.
        checkpoint: copy of what is saved to host memory, spread over the steps between checkpoints.
    """

    compute: float
    launches: float
    tensor: float
    pipeline: float
    streams: float
    bubble: float
    reduce: float
    gather: float
    update: float
    data: float
    checkpoint: float

    @cached_property
    def total(self) -> float:
        return sum(getattr(self, one.name) for one in fields(self))

    def to_json(self) -> dict[str, float]:
        return {**asdict(self), "total": self.total}


def step_time(
    sizes: ModelSizes, parallel: ParallelConfig, device: DeviceSpec, memories: Sequence[RankMemory], saved: float
) -> StepTime:
    """Of a step, by part.

    Args:
        sizes: of the model.
        parallel: the layout.
        device: of every rank.
        memories: of the stages.
        saved: bytes of a checkpoint.
    """
    config = sizes.on(parallel)
    stages = [stage_time(sizes, parallel, stage, device) for stage in range(parallel.pipeline)]
    slowest = max(stages, key=lambda one: one.total)
    count = config.micro_batches
    ends = [
        _once_a_step(config, sizes, parallel, stage, device, memories[stage], stages[stage]) for stage in _few(stages)
    ]
    reduce, gather, update = (max(values) for values in zip(*ends, strict=True))
    interval = config.run.checkpoint_every
    return StepTime(
        compute=count * slowest.compute,
        launches=count * slowest.launches,
        tensor=count * slowest.tensor,
        pipeline=count * slowest.pipeline,
        streams=count * slowest.streams,
        bubble=sum(one.total for one in stages) - slowest.total,
        reduce=reduce,
        gather=gather,
        update=update,
        data=0.0,
        checkpoint=saved / parallel.world_size / device.host_rate / interval,
    )


def of_stage(time: StepTime, stage: StageTime, micro_batches: int) -> StepTime:
    """The same step as seen by the ranks of one stage, which wait where another stage takes longer."""
    parts = ("compute", "launches", "tensor", "pipeline", "streams")
    own = {name: micro_batches * getattr(stage, name) for name in parts}
    working = replace(time, bubble=0.0, **own)
    return replace(working, bubble=time.total - working.total)


def stage_seconds(
    sizes: ModelSizes, parallel: ParallelConfig, device: DeviceSpec, memories: Sequence[RankMemory]
) -> list[StageSeconds]:
    """The same, for the simulator of a step."""
    found, config = [], sizes.on(parallel)
    for stage in range(parallel.pipeline):
        time = stage_time(sizes, parallel, stage, device)
        reduce, gather, update = _once_a_step(config, sizes, parallel, stage, device, memories[stage], time)
        found.append(StageSeconds(time.forward, time.backward, time.send, reduce, update + gather))
    return found


def _few(stages: Sequence[StageTime]) -> list[int]:
    """Stages that hold most: the ends, which have the embedding, and one between them."""
    return sorted({0, len(stages) // 2, len(stages) - 1})


def _once_a_step(
    config: Config,
    sizes: ModelSizes,
    parallel: ParallelConfig,
    stage: int,
    device: DeviceSpec,
    memory: RankMemory,
    time: StageTime,
) -> tuple[float, float, float]:
    """Seconds to reduce gradients, to gather weights, and to update."""
    count, itemsize = sizes.held(parallel, stage).parameters, local_segment(config).itemsize
    reduce, gather = data_seconds(sizes, parallel, stage, device, time)
    if parallel.pipeline > 1 and stage in (0, parallel.pipeline - 1):
        table = padded_vocab(config.model.vocab_size or 0, parallel.tensor) // parallel.tensor * config.model.width
        ends = 2, parallel.tensor * parallel.data * (parallel.pipeline - 1)
        reduce += 4 * table / rate_in_group(device, *ends) + device.least_seconds(*ends)
    gradients = sizes.held(parallel, stage).gradients
    touched = 2 * (memory.masters + memory.optimizer) + gradients / max(parallel.data, 1) + memory.weights
    update = device.update_passes * touched / device.memory_rate
    weights_of_layers = sum(times * sizes.work(kind).weights for kind, times in sizes.counts(parallel, stage).items())
    update += waiting(_STEP_OPERATIONS + _WEIGHT_OPERATIONS * weights_of_layers, update, device)
    if parallel.zero.offload_optimizer != "none":  # updated in host memory; gradients arrive, weights return
        own = sizes.held(parallel, stage).optimizer
        update += (2 * own + count // max(parallel.data, 1) * (4 + itemsize)) / device.host_rate
    return reduce, gather, update
