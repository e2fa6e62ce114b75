"""Bytes that a rank of a layout needs for what it keeps, without activations, libraries and fragmentation.

As in DeepSpeed: weights in the precision of the run; with ZeRO or bf16, float32 master weights, which ZeRO splits
over the data parallel ranks like the optimizer state; under ZeRO-3 the weights are split too.  Offloading needs
buffers on both sides, and DeepSpeed's buckets are allocated whole, however small the model is.
"""

from dataclasses import asdict, dataclass

from brt_dist.config.halves import Matrix
from brt_dist.config.schema import Config
from brt_dist.config.stages import stage_layers
from brt_dist.config.zero import BUCKET
from brt_dist.config.zero_rules import scatters_sums
from brt_dist.events import Plan, RankSizes
from brt_dist.model.shapes import padded_vocab
from brt_dist.optim.base import LocalMatrix
from brt_dist.planning.flops import TRAINING, forward_flops
from brt_dist.planning.parameters import stage_parameters

_MASTER = 4  # bytes of a float32


@dataclass(frozen=True)
class Held:
    """What one rank holds between steps.

    Attributes:
        parameters: how many parameters.
        weights: bytes of the weights.
        optimizer: bytes of master weights and optimizer state.
        carried: bytes of the committed memory of its streams.
    """

    parameters: int
    weights: int
    optimizer: int
    carried: int

    def to_json(self) -> dict[str, int]:
        return asdict(self)


@dataclass(frozen=True)
class Needed(Held):
    """What one rank needs in a step, when the backward pass is done and the update begins.

    Attributes:
        gradients: bytes of the gradients, and of their sums over micro-batches.
        buckets: bytes of the buffers through which gradients are reduced, ZeRO-3 gathers weights, and both go to the
            host and back; and of its second copy of the weights, from forward to update.
        pending: bytes of the pending memory of its streams.  Evaluation uses the same.
        in_flight: bytes of memory on the device while both slots are in host memory; 0 if they are not.
        device: bytes of all of it on the device.
        host: bytes of all of it in host memory.
    """

    gradients: int
    buckets: int
    pending: int
    in_flight: int
    device: int
    host: int


def plan_of(config: Config) -> Plan:
    """The plan of a run; `model.vocab_size` must be set.  Sizes are those of the rank that needs most of its device."""
    parallel, data, model = config.parallel, config.data, config.model
    whole = config.model_copy(update={"parallel": type(parallel)()})
    padding = (padded_vocab(model.vocab_size or 0, 1) - (model.vocab_size or 0)) * model.width
    stages = [needed_by(config, stage) for stage in range(parallel.pipeline)]
    return Plan(
        parameters=sum(matrix.size for matrix in stage_parameters(whole, 0)) - padding,
        ranks=parallel.world_size,
        fullest_rank=RankSizes(**max(stages, key=lambda needed: needed.device).to_json()),
        tokens_per_step=data.streams * data.segment,
        flops_per_step=TRAINING * forward_flops(model) * data.streams * data.segment,
    )


def held_by(config: Config, stage: int) -> Held:
    """What each rank of a pipeline stage holds between steps."""
    parallel = config.parallel
    tensor, shards = parallel.tensor, shards_of(config)
    local = [local_part(matrix, tensor) for matrix in stage_parameters(config, stage)]
    count = sum(part.numel for part in local)
    itemsize = itemsize_of(config)
    weights = count * itemsize // (shards if parallel.zero_stage == 3 else 1)
    has_masters = parallel.zero_stage > 0 or itemsize == 2
    masters = _MASTER * count // shards if has_masters else 0
    state = config.optimizer.state_bytes(local, shards)
    return Held(count, weights, masters + state, _micro_batch_memory(config, stage) * config.micro_batches)


def needed_by(config: Config, stage: int) -> Needed:
    """What each rank of a pipeline stage needs in a step."""
    held = held_by(config, stage)
    parallel = config.parallel
    largest = max(local_part(matrix, parallel.tensor).numel for matrix in stage_parameters(config, stage))
    gradients, buckets = _gradients(config, held.parameters), _buckets(config, held.parameters, largest)
    on_host = _on_host(config, held, largest)
    slots, in_flight = 2 * held.carried, 0
    if parallel.stream_memory == "host":
        # 1F1B has at most this many micro-batches between forward and backward; one more arrives, one returns
        begun = min(parallel.pipeline - stage, config.micro_batches)
        in_flight = (begun + 2) * _micro_batch_memory(config, stage)
    return Needed(
        **held.to_json(),
        gradients=gradients + on_host.gradients,
        buckets=buckets + on_host.buckets,
        pending=held.carried,
        in_flight=in_flight,
        device=held.weights + held.optimizer - on_host.kept + gradients + buckets + (in_flight or slots),
        host=on_host.kept + on_host.gradients + on_host.buckets + (slots if in_flight else 0),
    )


def _gradients(config: Config, count: int) -> int:
    """Bytes of gradients on the device, as DeepSpeed keeps them at the end of a backward pass.

    ZeRO-1 in bf16 adds each gradient to a sum as soon as it is made: sums over micro-batches, whole and in float32.  In
    fp32 a backward adds to the gradients themselves, and what a rank updates is copied.  ZeRO 2 and 3 keep what a rank
    updates, and whole gradients only until a bucket is full; so does ZeRO-1 in fp32 if it reduces during backward.
    """
    stage, itemsize, own = config.parallel.zero_stage, itemsize_of(config), _MASTER * count // shards_of(config)
    is_offloaded = config.parallel.zero.offload_optimizer != "none"
    match stage:
        case 0:
            return itemsize * count
        case 1 if is_offloaded or scatters_sums(config):
            return _MASTER * count
        case 1 if not config.parallel.zero.overlap:
            return itemsize * count + own
        case 2 if is_offloaded and itemsize == _MASTER:
            return 0
        case 3 if is_offloaded:
            return 0
        case _:
            return own


def _buckets(config: Config, count: int, largest: int) -> int:
    """Bytes of buffers on the device.

    Args:
        count: parameters of the rank.
        largest: elements of its largest parameter.
    """
    stage, itemsize, zero = config.parallel.zero_stage, itemsize_of(config), config.parallel.zero
    reduced = 2 if zero.reduce_dtype == "bf16" else _MASTER
    if stage == 0:
        return 0
    if scatters_sums(config):  # in place, or from copies that last until the update
        return reduced * count if reduced < _MASTER else 0
    elements = zero.reduce_bucket or BUCKET
    if stage < 3 or not zero.contiguous_gradients:
        elements = min(elements, count)
    if not zero.contiguous_gradients:
        buckets = reduced * elements  # concatenated to be reduced
    elif stage == 3:
        buckets = reduced * elements
    else:  # one is filled while another is reduced; the pipeline also makes a second one
        is_double = zero.overlap or config.parallel.pipeline > 1
        buckets = (_MASTER if stage == 1 else itemsize) * elements * (2 if is_double else 1)
    if stage == 3:
        # weights that are whole when the backward pass begins: those used within that distance, there and back
        buckets += itemsize * min(zero.reuse_distance // 2 + zero.prefetch_bucket + largest, count)
        return buckets + (_second_copy(config, count) if zero.offload_parameters == "none" else 0)
    return buckets + (itemsize * largest if zero.offload_optimizer != "none" else 0)


def _second_copy(config: Config, count: int) -> int:
    within = config.parallel.zero.weights_within
    return itemsize_of(config) * count // within if within > 1 else 0


@dataclass(frozen=True)
class _OnHost:
    """Bytes in host memory of what would otherwise be on the device: what is kept, gradients, and buffers."""

    kept: int = 0
    gradients: int = 0
    buckets: int = 0


def _on_host(config: Config, held: Held, largest: int) -> _OnHost:
    """What offload puts into host memory; `largest` is the number of elements of the largest parameter."""
    zero, stage, itemsize = config.parallel.zero, config.parallel.zero_stage, itemsize_of(config)
    kept, second = 0, 0
    if zero.offload_parameters != "none":
        kept, second = held.weights, _second_copy(config, held.parameters)
    if zero.offload_optimizer == "none":
        return _OnHost(kept, buckets=second)
    kept += held.optimizer
    mine = held.parameters // shards_of(config)
    if stage == 3:  # what is reduced, and what the optimizer reads
        return _OnHost(kept, gradients=2 * _MASTER * mine, buckets=second)
    # fp32 with ZeRO-2 accumulates what a rank updates on the host
    sums = _MASTER * (mine + largest) if stage == 2 and itemsize == _MASTER else 0
    # the updated weights, and a parameter on its way
    return _OnHost(kept, gradients=_MASTER * mine + sums, buckets=itemsize * (mine + largest))


def shards_of(config: Config) -> int:
    """The number of ranks over which ZeRO splits."""
    return config.parallel.data if config.parallel.zero_stage else 1


def itemsize_of(config: Config) -> int:
    """Bytes of a weight."""
    return 2 if config.run.precision == "bf16" else 4


def local_part(matrix: Matrix, tensor: int) -> LocalMatrix:
    """What one of `tensor` tensor parallel ranks has of a parameter."""
    rows = matrix.rows // tensor if matrix.split else matrix.rows
    shape = (rows,) if matrix.columns == 1 else (rows, matrix.columns)
    return LocalMatrix(shape, 0 if matrix.split else None, tensor, matrix.rows, (matrix.matrices, 1))


def _micro_batch_memory(config: Config, stage: int) -> int:
    """Bytes of one slot for the streams of a micro-batch, over the layers of a stage."""
    model, parallel = config.model, config.parallel
    fields = [field for layer in stage_layers(config)[stage] for field in model.mixer_of(layer).memory(model)]
    of_stream = sum(
        field.local_bytes(parallel.tensor, parallel.sequence_parallel, itemsize_of(config)) for field in fields
    )
    return parallel.micro_batch * model.repeat * of_stream
