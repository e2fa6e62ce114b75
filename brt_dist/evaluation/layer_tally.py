"""Combines the statistics that mixers report for a layer, over streams and ranks; the same in every layout."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from brt_dist.config.schema import ModelConfig
from brt_dist.events import LayerStatistics
from brt_dist.model.layers import Layer
from brt_dist.model.mixers.base import Statistic


class LayerTally:
    """Sums of statistics by layer.

    Args:
        declared: for each layer, the statistics that its mixer gives, by name.
        device: of the values.
    """

    def __init__(self, declared: Mapping[int, Mapping[str, Statistic]], device: torch.device) -> None:
        self._rows = [(layer, name, how.reduce) for layer, named in declared.items() for name, how in named.items()]
        self._place = {(layer, name): row for row, (layer, name, _) in enumerate(self._rows)}
        # sums and counts; copies on several ranks count equally in both
        self._sums = torch.zeros(len(self._rows), 2, dtype=torch.float64, device=device)
        self._largest = torch.zeros(len(self._rows), dtype=torch.float64, device=device)

    def add(self, layer: int, name: str, values: Tensor) -> None:
        """More values of a statistic of a layer."""
        row = self._place[layer, name]
        values = values.double()
        self._sums[row, 0] += (values.square() if self._rows[row][2] == "rms" else values).sum()
        self._sums[row, 1] += values.numel()
        self._largest[row] = torch.maximum(self._largest[row], values.abs().max())

    @contextmanager
    def watching(self, layers: Iterable[Layer], counts: Callable[[], bool] = lambda: True) -> Iterator[None]:
        """Add what these layers' mixers report about each forward pass (`Mixer.watched`), if the pass `counts`."""

        def teller(layer: int) -> Callable[[str, Tensor], None]:
            return lambda name, values: self.add(layer, name, values) if counts() else None

        handles = []
        for layer in {layer.index: layer for layer in layers}.values():  # once each, however often a layer runs
            if layer.model.mixer_of(layer.index).watched:
                mixer: Any = layer.mixer
                handles += mixer.watch(teller(layer.index))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def result(self) -> tuple[LayerStatistics, ...]:
        """The statistics of each layer that has some, over all ranks.  Collective."""
        dist.all_reduce(self._sums)
        dist.all_reduce(self._largest, op=dist.ReduceOp.MAX)
        found: dict[int, dict[str, float]] = {layer: {} for layer, *_ in self._rows}
        for (layer, name, how), (total, count), most in zip(
            self._rows, self._sums.tolist(), self._largest.tolist(), strict=True
        ):
            mean = total / max(count, 1)
            found[layer][name] = most if how == "max" else mean**0.5 if how == "rms" else mean
        return tuple(LayerStatistics(layer, values) for layer, values in found.items())


def statistics_by_layer(model: ModelConfig) -> dict[int, Mapping[str, Statistic]]:
    """All that mixers report about the memory of each run of a layer, and about the layer's forward passes."""
    watched = watched_by(model)
    found = {run: {**model.mixer_of(run).statistics, **watched.get(run, {})} for run in range(model.depth)}
    return {run: named for run, named in found.items() if named}


def watched_by(model: ModelConfig) -> dict[int, Mapping[str, Statistic]]:
    """What mixers report about a forward pass, by layer; a layer that runs several times counts once."""
    return {layer: mixer.watched for layer in range(model.layers) if (mixer := model.mixer_of(layer)).watched}
