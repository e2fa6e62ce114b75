"""Statistics of the memory that mixers carry; the same in every layout."""

from typing import Any

import deepspeed
import torch
import torch.distributed as dist

from brt_dist.config.schema import ModelConfig
from brt_dist.events import LayerStatistics
from brt_dist.parallel.engine import Engine
from brt_dist.parallel.pipeline import runs_of


def has_statistics(model: ModelConfig) -> bool:
    """Whether a layer has a mixer that declares statistics."""
    return any(model.mixer_of(index).statistics for index in range(model.depth))


def memory_statistics(engine: Engine) -> tuple[LayerStatistics, ...]:
    """For each layer whose mixer declares statistics, their values over all streams, by name.  Collective."""
    model = engine.config.model
    mixers = {index: model.mixer_of(index) for index in range(model.depth)}
    rows = [(index, name, how.reduce) for index, mixer in mixers.items() for name, how in mixer.statistics.items()]
    place = {(index, name): row for row, (index, name, _) in enumerate(rows)}
    # sums and counts; copies on several ranks count equally in both
    sums = torch.zeros(len(rows), 2, dtype=torch.float64, device=engine.device.torch)
    largest = torch.zeros(len(rows), dtype=torch.float64, device=engine.device.torch)
    for index, layer in runs_of(engine.stage):
        if not mixers[index].statistics:
            continue
        memories = [engine.memory.read(index, number) for number in range(engine.layout.filled_micro_batches)]
        module: Any = layer.mixer
        with deepspeed.zero.GatheredParameters(module.statistics_parameters()):
            for name, values in module.statistics(memories):
                row, how = place[index, name], mixers[index].statistics[name].reduce
                sums[row, 0] += (values.square() if how == "rms" else values).sum()
                sums[row, 1] += values.numel()
                largest[row] = torch.maximum(largest[row], values.abs().max())
    dist.all_reduce(sums)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    found: dict[int, dict[str, float]] = {index: {} for index, *_ in rows}
    for (index, name, how), (total, count), most in zip(rows, sums.tolist(), largest.tolist(), strict=True):
        mean = total / max(count, 1)
        found[index][name] = most if how == "max" else mean**0.5 if how == "rms" else mean
    return tuple(LayerStatistics(index, values) for index, values in found.items())
