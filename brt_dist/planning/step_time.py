"""How long a step takes, by part: compute at a share of the peak, and the communication that nothing hides.

A model of the device and not a measurement: matrix products reach a fixed share of the peak, everything else moves
activations through memory, and each operation has a least time.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property

from brt_dist.config.schema import Config, ParallelConfig
from brt_dist.config.zero_rules import scatters_sums
from brt_dist.model.shapes import padded_vocab
from brt_dist.planning.activations import local_segment
from brt_dist.planning.device_memory import RankMemory
from brt_dist.planning.devices import DeviceSpec
from brt_dist.planning.model_sizes import ModelSizes
from brt_dist.planning.simulator.seconds import StageSeconds

_FORWARD_OPERATIONS = 0.4  # share of a layer's operations that the forward has

_DISTURBED = 0.2
"""For how long compute is held up by communication beside it, which takes multiprocessors and memory: an assumption"""


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step, by part; `total` is their sum.

    Attributes:
        compute: of the stage that takes longest.
        launches: for which its device waits for the next operation.
        tensor: exposed collectives of tensor parallel ranks.
        pipeline: transfers between stages.
        streams: memory of streams to and from host memory, where compute does not hide it.
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


@dataclass(frozen=True)
class StageTime:
    """Seconds of a stage for one micro-batch.

    Attributes:
        forward, backward: with exposed collectives and launches.
        compute, launches, tensor, pipeline, streams: what they are made of, transfers to both neighbours included.
        send: one transfer to the next stage.
    """

    forward: float
    backward: float
    compute: float
    launches: float
    tensor: float
    pipeline: float
    streams: float
    send: float

    @cached_property
    def total(self) -> float:
        return self.compute + self.launches + self.tensor + self.pipeline + self.streams


def stage_time(sizes: ModelSizes, parallel: ParallelConfig, stage: int, device: DeviceSpec) -> StageTime:
    """Of each rank of a stage, for one micro-batch."""
    config, model = sizes.on(parallel), sizes.config.model
    local, counts = local_segment(config), sizes.counts(parallel, stage)
    flops = _flops(config, device)
    link = _rate(parallel, device, parallel.tensor)
    hidden = local.tokens * model.width * local.itemsize
    half = hidden * (parallel.tensor - 1) / parallel.tensor / link  # a gather, or a reduction that leaves parts
    forward = backward = launches = tensor = 0.0
    exposed_forward = exposed_backward = 0.0
    for kind, count in counts.items():
        work, times = sizes.work(kind), count * model.repeat
        moved = sizes.activations(kind, local, "none").full / device.memory_rate
        share = local.tokens / parallel.tensor / flops
        mixer, ffn = work.mixer * share, work.ffn * share
        once = mixer + ffn + 2 * moved
        again = {"none": 0.0, "attention": mixer + moved, "layer": once}[parallel.recompute]
        ahead, back = once, 2 * (mixer + ffn) + 3 * moved + again
        passes = 1 + (again > 0)
        least = work.operations * device.launch_seconds
        ahead_idle = max(0.0, _FORWARD_OPERATIONS * least - ahead)
        back_idle = max(0.0, (1 - _FORWARD_OPERATIONS * (2 - passes)) * least - back)
        of_states = 2 * half * work.states
        ahead_sent = 4 * half + of_states
        back_sent = (ahead_sent / (1 if parallel.recompute == "layer" else 2)) * (passes - 1) + of_states
        if parallel.sequence_parallel:
            back_sent += 2 * half + _exposed(4 * half, 2 * (mixer + ffn))  # the rest runs beside the products
        else:
            back_sent += _exposed(4 * half, mixer + ffn)
        forward += times * ahead
        backward += times * back
        launches += times * (ahead_idle + back_idle)
        exposed_forward += times * (ahead_sent + ahead_idle)
        exposed_backward += times * (back_sent + back_idle)
        tensor += times * (ahead_sent + back_sent)
    if stage == parallel.pipeline - 1:  # backward computes the logits again
        head = 2 * model.width * (model.vocab_size or 0) * local.tokens / parallel.tensor / flops
        forward, backward = forward + head, backward + 3 * head
    send = 0.0
    if parallel.pipeline > 1:
        near = parallel.tensor * parallel.data * 2 <= device.devices_per_node
        send = local.hidden(model.width) / (
            (device.link_rate if near else device.network_rate) * device.link_efficiency
        )
    neighbours = (stage > 0) + (stage < parallel.pipeline - 1)
    carried = 0.0
    if parallel.stream_memory == "host":
        size = sizes.held(parallel, stage).carried * parallel.micro_batch
        carried = max(0.0, size / device.host_rate - forward)
    return StageTime(
        forward=forward + exposed_forward + carried,
        backward=backward + exposed_backward,
        compute=forward + backward,
        launches=launches,
        tensor=tensor,
        pipeline=2 * neighbours * send,
        streams=carried,
        send=send,
    )


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
    rate = _rate(parallel, device, parallel.tensor * parallel.data)
    moved = (parallel.data - 1) / parallel.data / rate  # seconds for each byte of a gather or a reduction
    sums = count * (2 if parallel.zero.reduce_dtype == "bf16" else 4) * moved
    weights = count * itemsize * moved
    reduce, gather = sums, weights
    micro_batches = config.micro_batches
    if parallel.zero_stage == 0:
        reduce, gather = 2 * count * itemsize * moved, 0.0
    elif scatters_sums(config) and parallel.zero.overlap is not False:
        reduce = _exposed(sums, time.backward)  # beside the last backward
    elif parallel.zero_stage == 2:
        reduce = micro_batches * sums
    elif parallel.zero_stage == 3:
        reduce = micro_batches * _exposed(sums + 2 * weights, time.compute)
        gather = 0.0
    if parallel.pipeline > 1 and stage in (0, parallel.pipeline - 1):
        table = padded_vocab(config.model.vocab_size or 0, parallel.tensor) // parallel.tensor * config.model.width
        reduce += 4 * table / (device.network_rate * device.link_efficiency)
    touched = 2 * (memory.masters + memory.optimizer) + memory.gradients / max(parallel.data, 1) + memory.weights
    update = touched / device.memory_rate
    if parallel.zero.offload_optimizer != "none":  # updated in host memory; gradients come, weights go back
        own = sizes.held(parallel, stage).optimizer
        update += (2 * own + count // max(parallel.data, 1) * (4 + itemsize)) / device.host_rate
    return reduce, gather, update


def _exposed(seconds: float, beside: float) -> float:
    """What communication costs that runs beside so many seconds of compute."""
    return max(0.0, seconds - beside) + _DISTURBED * min(seconds, beside)


def _flops(config: Config, device: DeviceSpec) -> float:
    peak = device.peak_flops.bf16 if config.run.precision == "bf16" else device.peak_flops.fp32
    return peak * device.matmul_efficiency


def _rate(parallel: ParallelConfig, device: DeviceSpec, span: int) -> float:
    """Bytes a second of a group whose ranks lie within `span` ranks in a row."""
    return (device.link_rate if span <= device.devices_per_node else device.network_rate) * device.link_efficiency
