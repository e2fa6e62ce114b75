"""How long a pipeline stage takes for a micro-batch, by part; see `step_time`."""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import cached_property
from statistics import fmean
from typing import Literal

from brt_dist.config.local_segment import LocalSegment
from brt_dist.config.schema import Config, ModelConfig, ParallelConfig
from brt_dist.config.zero_rules import scatters_sums
from brt_dist.model.shapes import CACHED_TOKENS, TILE_COLUMNS, TILE_TOKENS, is_one_tile, padded_vocab
from brt_dist.planning.activations import local_segment
from brt_dist.planning.devices import DeviceSpec
from brt_dist.planning.flops import TRAINING
from brt_dist.planning.model_sizes import ModelSizes

_FORWARD_OPERATIONS = 0.4  # share of a layer's operations that the forward has
_FORWARD_PASSES = 0.4  # share of the passes over activations that the forward makes
_FORWARD_LOGITS = 1 / 3  # the same of those over logits
TILE_OPERATIONS = 59  # of a tile of logits, forward and backward, counted in a step of the engine

_DISTURBED = 0.2
"""How much overlapping communication slows compute, by using multiprocessors and memory bandwidth: an assumption"""


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


@dataclass(frozen=True)
class _Work:
    """Forward and backward of some layers: seconds of the device and of exposed collectives, and operations."""

    forward: float = 0.0
    backward: float = 0.0
    sent_forward: float = 0.0
    sent_backward: float = 0.0
    operations_forward: float = 0.0
    operations_backward: float = 0.0

    @classmethod
    def sum(cls, works: "Iterable[tuple[int, _Work]]") -> "_Work":
        """Of so many of each."""
        given = list(works)
        return cls(*(sum(times * getattr(work, one.name) for times, work in given) for one in fields(cls)))


def stage_time(sizes: ModelSizes, parallel: ParallelConfig, stage: int, device: DeviceSpec) -> StageTime:
    """Of each rank of a stage, for one micro-batch."""
    config = sizes.on(parallel)
    model, local = config.model, local_segment(config)
    parts = [
        (count * model.repeat, _layer(sizes, parallel, kind, device))
        for kind, count in sizes.counts(parallel, stage).items()
    ]
    if stage == parallel.pipeline - 1:
        parts.append((1, _head(config, local, device)))
    parts.append((1, _ends(config, local, stage, device)))
    of_gradients = device.gradient_passes * gradient_bytes(config) * sizes.held(parallel, stage).parameters
    work = _Work.sum([*parts, (1, _Work(backward=of_gradients / device.memory_rate))])
    forward, backward = work.forward * device.correction, work.backward * device.correction
    compute, sent = forward + backward, work.sent_forward + work.sent_backward
    operations = work.operations_forward + work.operations_backward
    launches = waiting(operations, compute + sent, device)  # the host may be far ahead
    of_forward = launches * work.operations_forward / operations
    send = 0.0
    if parallel.pipeline > 1:
        near = parallel.tensor * parallel.data * 2 <= device.devices_per_node
        rate = (device.link_rate if near else device.network_rate) * device.link_efficiency
        rate *= device.link_shares.get("send", 1.0)
        send = device.link_seconds + local.hidden(model.width) / rate
    neighbours = (stage > 0) + (stage < parallel.pipeline - 1)
    carried = 0.0
    if parallel.stream_memory == "host":
        size = sizes.held(parallel, stage).carried * parallel.micro_batch
        carried = max(0.0, size / device.host_rate - forward)
    return StageTime(
        forward=forward + work.sent_forward + of_forward + carried,
        backward=backward + work.sent_backward + launches - of_forward,
        compute=compute,
        launches=launches,
        tensor=sent,
        pipeline=2 * neighbours * send,
        streams=carried,
        send=send,
    )


def _layer(sizes: ModelSizes, parallel: ParallelConfig, kind: int, device: DeviceSpec) -> _Work:
    config = sizes.on(parallel)
    model, local, work = config.model, local_segment(config), sizes.work(kind)
    share = local.tokens / parallel.tensor / _products(config, local, device)
    mixer, ffn = work.mixer * share, work.ffn * share
    heads = (
        TRAINING
        * work.attention
        * local.tokens
        / parallel.tensor
        / (_peak(config, device) * device.attention_efficiency)
    )
    reads = heads * device.attention_forward
    passes_over = device.mixer_passes.get(model.mixer_of(kind).kind, device.activation_passes)
    found = sizes.activations(kind, local, "none")
    moved = passes_over * found.made / device.memory_rate
    remade = 2 * (found.made - found.kept) / device.memory_rate  # written and read once more
    once = mixer + ffn + reads + _FORWARD_PASSES * moved
    again = {"none": remade, "attention": mixer + reads + _FORWARD_PASSES / 2 * moved, "layer": once}
    passes = 1 + (parallel.recompute != "none")
    sent = sent_back = 0.0
    if parallel.tensor > 1:
        half = _half(parallel, model, local, device)
        of_states = 2 * work.states * half
        if work.states:  # one after the other, for each block
            of_states += 2 * local.segment / model.window * device.least_seconds(parallel.tensor)
        sent = 4 * half + of_states
        last = half if parallel.sequence_parallel else 2 * half  # the end of a half of a layer is not recomputed
        sent_again = {"none": 0.0, "attention": 2 * half + of_states - last, "layer": sent - last}
        sent_back = sent_again[parallel.recompute] + of_states
        if parallel.sequence_parallel:
            sent_back += 2 * half + exposed(4 * half, 2 * (mixer + ffn), device)  # the rest overlaps the products
        else:
            sent_back += exposed(4 * half, mixer + ffn, device)
    return _Work(
        forward=once,
        backward=2 * (mixer + ffn) + heads - reads + (1 - _FORWARD_PASSES) * moved + again[parallel.recompute],
        sent_forward=sent,
        sent_backward=sent_back,
        operations_forward=work.operations * _FORWARD_OPERATIONS,
        operations_backward=work.operations * (1 - _FORWARD_OPERATIONS * (2 - passes)),
    )


def _half(parallel: ParallelConfig, model: ModelConfig, local: LocalSegment, device: DeviceSpec) -> float:
    """Seconds to all-gather or reduce-scatter hidden states over tensor parallel ranks; an all-reduce takes both."""
    sent = local.tokens * model.width * local.itemsize * (parallel.tensor - 1) / parallel.tensor
    if not parallel.sequence_parallel:
        alone = sent / rate_in_group(device, parallel.tensor) + device.least_seconds(parallel.tensor) / 2
    else:
        rates = [rate_in_group(device, parallel.tensor, how=how) for how in ("gather", "scatter")]
        alone = sent * fmean(1 / rate for rate in rates) + device.least_seconds(parallel.tensor, how="gather")
    return alone / device.tensor_share


def _ends(config: Config, local: LocalSegment, stage: int, device: DeviceSpec) -> _Work:
    """Collectives of the token embedding and of the loss over tensor parallel ranks."""
    parallel = config.parallel
    if parallel.tensor == 1:
        return _Work()
    is_split, half = parallel.sequence_parallel, _half(parallel, config.model, local, device)
    forward = backward = 0.0
    if stage == 0:  # embeddings are summed; gradients of parts are gathered
        forward += half if is_split else 2 * half
        backward += half if is_split else 0.0
    if stage == parallel.pipeline - 1:  # the largest logit and the sums; hidden states are gathered, twice if split
        forward += 2 * device.least_seconds(parallel.tensor) + (half if is_split else 0.0)
        backward += 2 * half
    return _Work(sent_forward=forward, sent_backward=backward)


def logits_products(rows: int, tensor_parallel: int) -> tuple[int, int]:
    """Products of the size of the logits, forward and backward; see `model.cross_entropy`.

    Forward makes the gradients of a vocabulary that one tile has; else backward computes the logits again.
    """
    return (3, 0) if is_one_tile(rows, tensor_parallel) else (1, 3)


def _head(config: Config, local: LocalSegment, device: DeviceSpec) -> _Work:
    """Logits and loss."""
    model, tensor = config.model, config.parallel.tensor
    columns = padded_vocab(model.vocab_size or 0, tensor) // tensor
    product = 2 * model.width * columns * local.tokens / _products(config, local, device)
    logits = device.logits_passes * 4 * columns * local.tokens / device.memory_rate
    operations = TILE_OPERATIONS * tiles(local.tokens, columns, is_cached=not device.is_asynchronous)
    ahead, back = logits_products(columns, tensor)
    of_forward = 1.0 if back == 0 else _FORWARD_LOGITS
    launched = 1.0 if back == 0 else _FORWARD_OPERATIONS
    return _Work(
        forward=ahead * product + of_forward * logits,
        backward=back * product + (1 - of_forward) * logits,
        operations_forward=operations * launched,
        operations_backward=operations * (1 - launched),
    )


def tiles(tokens: int, columns: int, is_cached: bool) -> int:
    """How many tiles of logits the loss makes; on a CPU they stay in its cache."""
    return -(-tokens // (CACHED_TOKENS if is_cached else TILE_TOKENS)) * -(-columns // TILE_COLUMNS)


def gradient_bytes(config: Config) -> float:
    """Bytes that a micro-batch reads and writes for each gradient as it is computed, counted in the training code.

    All are looked at (`parallel.control`) and added to a float32 sum.  DeepSpeed's buckets copy gradients, join those
    that are reduced together, and divide them: for each micro-batch under ZeRO-2, otherwise once a step.
    """
    parallel, count = config.parallel, config.micro_batches
    itemsize = local_segment(config).itemsize
    added, packed = 4 + 4 + itemsize, 3 * 2 * 4
    if parallel.zero_stage == 2:
        return itemsize + packed + added / parallel.data
    if scatters_sums(config) or parallel.zero_stage == 3 or parallel.zero_stage == parallel.data - 1 == 0:
        packed = 0
    return itemsize + added + packed / count


def _products(config: Config, local: LocalSegment, device: DeviceSpec) -> float:
    """FLOP/s of matrix products; one of their sides is divided over the tensor parallel ranks."""
    side = min(local.tokens, config.model.width // config.parallel.tensor)
    return _peak(config, device) * device.share_of_products(side)


def exposed(seconds: float, beside: float, device: DeviceSpec) -> float:
    """Exposed seconds of communication that overlaps some seconds of compute; a CPU cannot overlap."""
    if not device.is_asynchronous:
        return seconds
    return max(0.0, seconds - beside) + _DISTURBED * min(seconds, beside)


def waiting(operations: float, busy: float, device: DeviceSpec) -> float:
    """Seconds that the host adds to the device's busy time."""
    seconds = operations * device.launch_seconds
    return max(0.0, seconds - busy) if device.is_asynchronous else seconds


def _peak(config: Config, device: DeviceSpec) -> float:
    return device.peak_flops.bf16 if config.run.precision == "bf16" else device.peak_flops.fp32


def rate_in_group(
    device: DeviceSpec, ranks: int, stride: int = 1, how: Literal["sum", "gather", "scatter"] = "sum"
) -> float:
    """Bytes a second that a rank sends in a group of `ranks`, each `stride` after the one before."""
    share = 1.0 if how == "sum" else device.link_shares.get(how, 1.0)
    return device.rate_of_ring(ranks, stride) * device.link_efficiency * share
