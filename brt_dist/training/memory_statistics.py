"""How large the carried states are, and how much of them the gates keep: the same numbers in every layout."""

import re

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor

from brt_dist.config.schema import ModelConfig
from brt_dist.events import LayerStatistics
from brt_dist.parallel.engine import Engine

# bias and offset of what a gate keeps when its input is nought; see model/gates.py
_KEEPS = {"gate.bias": 0.0, "gate.forget_bias": 1.0}


def has_statistics(model: ModelConfig) -> bool:
    """Whether a layer of the model has memory that statistics are made of."""
    return bool(model.recurrent_layers)


def memory_statistics(engine: Engine) -> tuple[LayerStatistics, ...]:
    """For each recurrent layer, over all streams: root mean square and largest size of the state, and the mean share
    of it that its gates keep from block to block (of an LSTM gate: without input).  Collective.
    """
    layers = {layer: row for row, layer in enumerate(engine.config.model.recurrent_indices())}
    # squares, their number, kept shares, their number; copies on several ranks count on both sides alike
    sums = torch.zeros(len(layers), 4, dtype=torch.float64, device=engine.device.torch)
    largest = torch.zeros(len(layers), dtype=torch.float64, device=engine.device.torch)
    for layer, _, field, values in engine.memory.tensors():
        if field == "state":
            row, state = layers[layer], values.double()
            sums[row, 0] += state.square().sum()
            sums[row, 1] += state.numel()
            largest[row] = torch.maximum(largest[row], state.abs().max())
    for layer, kept in _kept(engine):
        if layer in layers:
            sums[layers[layer], 2] += kept.sum()
            sums[layers[layer], 3] += kept.numel()
    dist.all_reduce(sums)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return tuple(
        LayerStatistics(layer, {"state_rms": (squares / count) ** 0.5, "state_max": most, "kept": kept / max(gates, 1)})
        for layer, (squares, count, kept, gates), most in zip(layers, sums.tolist(), largest.tolist(), strict=True)
    )


def _kept(engine: Engine) -> list[tuple[int, Tensor]]:
    """Layer, and for each channel of one of its gates the share that it keeps."""
    found = []
    for parameter in engine.parameters:
        offset = next((offset for end, offset in _KEEPS.items() if parameter.name.endswith(end)), None)
        layer = re.search(r"\blayers\.(\d+)\b", parameter.name)
        if offset is not None and layer:
            with deepspeed.zero.GatheredParameters([parameter.local]):
                found.append((int(layer[1]), torch.sigmoid(parameter.local.detach().double() + offset)))
    return found
