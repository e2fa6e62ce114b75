"""Builds the ranks of a layout without their memory, through the code that trains: on torch's meta device.

One process plays each rank in turn.  Its process groups exist but move nothing; its weights have shapes but no values.
So a model of a trillion parameters is built in seconds, and the layers themselves check that sizes are divisible.
"""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from brt_dist.config.schema import Config
from brt_dist.config.stages import stage_layers, work
from brt_dist.errors import ConfigError, PlatformError
from brt_dist.planning.memory import held_by

if TYPE_CHECKING:
    from brt_dist.parallel.layout import Layout
    from brt_dist.parallel.pipeline import PipelineStage, WholeModel


@dataclass(frozen=True)
class BuiltRank:
    """A rank, which stands for all that hold the same.

    Attributes:
        stage: of the pipeline.
        stages: all stages whose ranks hold the same, as far as shapes go.
        tensor_rank: 0, or the last.
        layers: that were built, by number.
        shapes: of the weights, by logical name.
        planned: how many parameters the plan counts on it.
        work: FLOPs of its layers in a training step for a token, as a share of the mean over all stages.
    """

    stage: int
    stages: tuple[int, ...]
    tensor_rank: int
    layers: tuple[int, ...]
    shapes: dict[str, tuple[int, ...]]
    planned: int
    work: float

    @property
    def parameters(self) -> int:
        """How many parameters were built."""
        return sum(math.prod(shape) for shape in self.shapes.values())


def built_ranks(config: Config) -> list[BuiltRank]:
    """Build each kind of rank once.  Imports torch, DeepSpeed and Megatron.

    Data parallel ranks hold the same weights, so one stands for all.  Stages are of one kind if they hold layers of the
    same kinds in the same order.

    Args:
        config: `model.vocab_size` must be set.

    Raises:
        ConfigError: a layer cannot be split as the layout says, or what was built is not what the plan counts.
        PlatformError: this process belongs to a run.
    """
    from brt_dist.parallel.layout import is_joined

    if is_joined():
        raise PlatformError("ranks can only be built in a process that belongs to no run; nearest: a separate process")
    one = _with_one_data_rank(config)
    shares = _work(config)
    found = []
    for stages in _kinds(config):
        for tensor_rank in sorted({0, config.parallel.tensor - 1}):
            layers, shapes = _build(one, stages[0] * config.parallel.tensor + tensor_rank)
            held = held_by(one, stages[0]).parameters
            found.append(BuiltRank(stages[0], stages, tensor_rank, layers, shapes, held, shares[stages[0]]))
    wrong = [rank for rank in found if rank.parameters != rank.planned]
    if wrong:
        raise ConfigError(
            f"stage {wrong[0].stage}: {wrong[0].parameters:,} parameters were built, but {wrong[0].planned:,} are "
            "planned; the declarations of one of its mixers or FFNs are wrong (`parameters`)"
        )
    return found


def total_parameters(ranks: list[BuiltRank], config: Config) -> int:
    """Parameters of all ranks with the first data parallel index, counting every copy."""
    tensor = config.parallel.tensor
    first = {rank.stages: rank.parameters for rank in ranks if rank.tensor_rank == 0}
    return sum(len(stages) * tensor * count for stages, count in first.items())


def _with_one_data_rank(config: Config) -> Config:
    parallel = config.parallel.model_copy(update={"data": 1})
    data = config.data.model_copy(update={"streams": parallel.micro_batch})
    return config.model_copy(update={"parallel": parallel, "data": data})


def _kinds(config: Config) -> list[tuple[int, ...]]:
    """Stages that hold the same kinds of layers in the same order."""
    model, last = config.model, config.parallel.pipeline - 1
    kinds: dict[object, list[int]] = {}
    for stage, layers in enumerate(stage_layers(config)):
        held = tuple((model.mixer_of(layer), model.ffn_of(layer)) for layer in layers)
        key = stage == 0, stage == last, tuple((repr(mixer), repr(ffn)) for mixer, ffn in held)
        kinds.setdefault(key, []).append(stage)
    return [tuple(stages) for stages in kinds.values()]


def _work(config: Config) -> list[float]:
    """Work of each stage, as a share of the mean."""
    *layers, head = work(config)
    layers[-1] += head
    sums = [sum(layers[layer] for layer in held) for held in stage_layers(config)]
    return [one * len(sums) / sum(sums) for one in sums]


def _build(config: Config, rank: int) -> tuple[tuple[int, ...], dict[str, tuple[int, ...]]]:
    """The layers of a rank, and the shapes of its weights."""
    from brt_dist.model.parameters import logical_parameters
    from brt_dist.parallel.layout import Layout
    from brt_dist.parallel.pipeline import layers_of

    layout = Layout.of(config, rank)
    with _alone_as(layout):
        stage = _stage(config, layout)
        parameters = [p for name, module in stage.logical_modules() for p in logical_parameters(module, name)]
        shapes = {p.name: tuple(p.local.shape) for p in parameters}
        return tuple(layer.index for layer in layers_of(stage)), shapes


def _stage(config: Config, layout: "Layout") -> "WholeModel | PipelineStage":
    import torch
    from torch import Tensor

    from brt_dist.model.linear import megatron_config
    from brt_dist.parallel.pipeline import PipelineStage, WholeModel
    from brt_dist.parallel.stage import StageContext
    from brt_dist.parallel.stream_memory import StreamMemory

    class Unmoved(PipelineStage):
        """DeepSpeed would otherwise move it to a device with memory."""

        def to(self, *_: Any, **__: Any) -> "Unmoved":
            return self

    def loss(scores: Tensor, labels: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        raise NotImplementedError("a rank that is only built computes nothing")

    context, parallel = StageContext(StreamMemory({}, 0)), megatron_config(config.parallel.sequence_parallel)
    recompute = config.parallel.recompute
    with torch.device("meta"):
        if layout.pipeline == 1:
            return WholeModel(config.model, context, parallel, recompute)
        return Unmoved(config.model, layout, stage_layers(config), context, parallel, recompute, loss)


@contextmanager
def _alone_as(layout: "Layout") -> Iterator[None]:
    """Make this process one rank of a world."""
    from brt_dist.parallel.device import Device, choose
    from brt_dist.parallel.layout import finalize, initialize
    from brt_dist.parallel.torch_internals import store_of_nobody

    class Nobody(Device):
        @property
        def backend(self) -> str:
            return "fake"

    choose("cpu", 0)
    # DeepSpeed prints the topology
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
        try:
            initialize(layout, Nobody("cpu", 0), store=store_of_nobody())
            yield
        finally:
            finalize()
