"""Rates of a device: matrix products, memory, attention, the loss, and the host's overhead."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from brt_dist.config.schema import ModelConfig
from brt_dist.model.attention import Window
from brt_dist.model.kernels.base import kernel
from brt_dist.model.layers import Layer
from brt_dist.model.memory import carried
from brt_dist.model.model import TokenEmbedding
from brt_dist.parallel.device import Device
from brt_dist.parallel.layout import agree
from brt_dist.planning.calibration.clock import Clock
from brt_dist.planning.stage_time import TILE_OPERATIONS, logits_products, tiles

_MOST_MAPS = 128  # linear maps that are multiplied one after the other
_LAYERS = 4  # of attention, likewise
_LONG_SECONDS = 1.0  # of a run; a processor without products in bf16 needs minutes for wide ones
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True)
class Sizes:
    """How large a measurement is.

    Attributes:
        rows: of the products: tokens.
        sides: of the products: width; a linear map goes to four times as many columns.
        copied: bytes of the copies that measure memory.
        width, heads, segment, window, streams: of the layer.
        precision: of the layer.
        columns: of the logits: vocabulary.
        cold: bytes that no cache holds.
    """

    rows: int
    sides: tuple[int, ...]
    copied: int
    width: int
    heads: int
    segment: int
    window: int
    streams: int
    precision: str
    columns: int
    cold: int


SIZES = {
    "cpu": Sizes(1024, (32, 64, 128, 256, 512, 1024), 1 << 27, 512, 8, 512, 128, 2, "fp32", 4096, 1 << 26),
    "cuda": Sizes(16384, (256, 512, 1024, 2048, 4096, 8192), 1 << 30, 1024, 8, 4096, 512, 8, "bf16", 32768, 1 << 28),
}


def product_rates(device: Device, clock: Clock, sizes: Sizes, precision: str) -> dict[int, float]:
    """FLOP/s of a linear map's three products, forward and backward, by its width.

    As in a step, all forward passes come before all backward passes, and by then the caches hold other data.  For a
    precision other than the layer's only the best rate is used: once a width takes long, wider ones are skipped.
    Collective.
    """
    found = {}
    for side in sizes.sides:
        rows, dtype = sizes.rows, DTYPES[precision]
        shapes = (rows, side), (4 * side, side), (rows, 4 * side)
        count = min(-(-sizes.cold // (sum(a * b for a, b in shapes) * dtype.itemsize)), _MOST_MAPS)
        maps = [[torch.randn(*shape, device=device.torch, dtype=dtype) for shape in shapes] for _ in range(count)]

        def products() -> None:
            for x, w, _ in maps:  # noqa: B023
                x @ w.T
            for x, w, y in reversed(maps):  # noqa: B023
                y @ w
                y.T @ x

        seconds = clock(products)
        found[side] = 3 * 2 * rows * side * 4 * side * count / seconds
        (slowest,) = agree((seconds,), device)  # otherwise some ranks would continue alone
        if precision != sizes.precision and slowest > _LONG_SECONDS:
            break
    return found


def memory_rate(device: Device, clock: Clock, sizes: Sizes) -> float:
    """Bytes a second, read and written, of a copy."""
    source = torch.ones(sizes.copied // 4, device=device.torch)
    target = torch.empty_like(source)
    return 2 * sizes.copied / clock(lambda: target.copy_(source))


def host_rate(device: Device, clock: Clock, sizes: Sizes) -> float:
    """Bytes a second from the device to host memory."""
    buffers = device.transfers()
    source = torch.ones(sizes.copied // 4, device=device.torch)
    target = buffers.host_buffer(source)

    def copy() -> None:
        buffers.to_host({"": source}, {"": target})
        buffers.finish()

    return sizes.copied / clock(copy)


def network(sizes: Sizes, **changes: object) -> ModelConfig:
    """A layer of the paper's kinds, without dropout."""
    settings: dict[str, object] = {
        "layers": 1, "width": sizes.width, "heads": sizes.heads, "head_dim": sizes.width // sizes.heads,
        "window": sizes.window, "vocab_size": 64, "dropout": 0.0, "mixers": {"window": {}},
        "ffns": {"relu": {"width": 4 * sizes.width}},
    }  # fmt: skip
    return ModelConfig.model_validate({**settings, **changes})


def attention_seconds(device: Device, clock: Clock, sizes: Sizes) -> tuple[float, float, float]:
    """Seconds of window attention, forward and backward, and the FLOPs of a forward pass for what tokens see.

    Of some layers one after the other, as in a step.
    """
    blocks, size, dtype = sizes.segment // sizes.window, sizes.width // sizes.heads, DTYPES[sizes.precision]
    shapes = [(sizes.streams, blocks, sizes.heads, length, size) for length in (sizes.window, *[2 * sizes.window] * 2)]
    layers = [
        [torch.randn(*shape, device=device.torch, dtype=dtype, requires_grad=True) for shape in shapes]
        for _ in range(_LAYERS)
    ]
    visible = torch.zeros(sizes.heads, 1, sizes.window, device=device.torch, requires_grad=True)
    compute = kernel("auto", device.torch)

    def forward() -> list[torch.Tensor]:
        return [compute(queries, Window(keys, values), visible, None) for queries, keys, values in layers]

    gradients = [torch.ones_like(one) for one in forward()]

    def backward() -> None:
        for y, of_y, inputs in reversed(list(zip(forward(), gradients, layers, strict=True))):
            torch.autograd.grad(y, [*inputs, visible], of_y)

    ahead, both = (clock(run) / _LAYERS for run in (forward, backward))
    flops = 4.0 * sizes.window * sizes.width * sizes.streams * sizes.segment
    return ahead, max(both - ahead, ahead), flops


def layer_run(device: Device, model: ModelConfig, segment: int, streams: int, precision: str) -> Callable[[], Any]:
    """Forward and backward of a layer in training."""
    dtype = DTYPES[precision]
    layer = Layer(model, 0).to(device.torch, dtype)
    with torch.no_grad():
        for weight in layer.parameters():
            weight.normal_(0.0, 0.02)
    x = torch.randn(segment, streams, model.width, device=device.torch, dtype=dtype, requires_grad=True)
    starts = torch.zeros(streams, segment // model.window, dtype=torch.bool, device=device.torch)
    memory = layer.blank_memory(streams)
    gradient = torch.ones_like(x)

    def run() -> None:
        y, after = layer(x, memory, starts)
        carried(after)
        y.backward(gradient)

    return run


def launch_seconds(device: Device, clock: Clock, sizes: Sizes) -> float:
    """Host seconds per operation, measured with layers so small that little else counts."""
    small = Sizes(0, (), 0, 32, 2, 128, 16, 1, sizes.precision, 0, 0)
    seconds = operations = 0.0
    kinds: list[dict[str, object]] = [{"window": {}}, {"recurrent": {"layers": None, "states": 16}}]
    for mixers in kinds:
        model = network(small, mixers=mixers)
        seconds += clock(layer_run(device, model, small.segment, small.streams, small.precision))
        operations += model.mixer_of(0).operations(model, small.segment) + model.ffn_of(0).operations(model, 0)
    return seconds / operations


def logits_passes(
    device: Device, clock: Clock, sizes: Sizes, products: float, launch: float, memory_rate: float
) -> float:
    """How many times the loss reads or writes the logits, from its time minus that of matrix products.

    Args:
        device: of this rank.
        clock: times it.
        sizes: of the measurement.
        products: FLOP/s of products of its width.
        launch: seconds of the host for an operation.
        memory_rate: bytes a second.
    """
    model = network(sizes, vocab_size=sizes.columns)
    embedding = TokenEmbedding(model).to(device.torch, DTYPES[sizes.precision])
    torch.nn.init.normal_(embedding.weight, std=0.02)
    x = torch.randn(sizes.rows, 1, sizes.width, device=device.torch, dtype=DTYPES[sizes.precision], requires_grad=True)
    target = torch.randint(sizes.columns, (sizes.rows, 1), device=device.torch)
    counted = torch.ones_like(target, dtype=torch.bool)
    seconds = clock(lambda: embedding.summed_loss(x, target, counted).backward())
    seconds -= sum(logits_products(sizes.columns, 1)) * 2 * sizes.rows * sizes.width * sizes.columns / products
    if device.kind == "cpu":
        seconds -= launch * TILE_OPERATIONS * tiles(sizes.rows, sizes.columns, is_cached=True)
    return max(seconds, 0.0) * memory_rate / (4 * sizes.rows * sizes.columns)
