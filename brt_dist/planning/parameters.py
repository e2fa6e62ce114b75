"""The parameters of a model by kind, from its config alone; what a stage of a layout holds of them."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from brt_dist.config.schema import Config, ModelConfig
from brt_dist.model.shapes import padded_vocab

POSITION_BUCKETS = 32


@dataclass(frozen=True)
class Matrix:
    """A parameter of rows x columns.  split: over the tensor parallel ranks.  matrices: as many, stacked by rows."""

    rows: int
    columns: int = 1
    split: bool = False
    matrices: int = 1

    @property
    def size(self) -> int:
        return self.rows * self.columns


def layer_parameters(model: ModelConfig, layer: int) -> Iterator[Matrix]:
    """Of layer `layer`, from 0."""
    width, heads, attended = model.width, model.heads, model.heads * model.head_dim
    recurrent = layer in model.recurrent_indices()
    kinds = 1 + (recurrent or model.feedback)
    yield Matrix(width)
    yield Matrix((2 + kinds) * attended, width, True, 2 + kinds)
    yield from (Matrix(heads, split=True) for _ in range(kinds))
    if model.positions == "t5":
        yield Matrix(heads, POSITION_BUCKETS, True)
    yield Matrix(width, kinds * attended, True)
    yield Matrix(width)
    yield Matrix(model.mlp_width, width, True)
    yield Matrix(width, model.mlp_width, True)
    if not recurrent:
        return
    yield from (Matrix(model.states, width), Matrix(model.states, width), Matrix(width))
    yield Matrix(4 * attended, width, True, 4)
    yield from (Matrix(heads, split=True), Matrix(heads, split=True))
    if model.cell != "single":
        yield from _update(model, 2 * attended)
    if model.cell == "single":
        yield Matrix(model.mlp_width, 2 * attended, True)
    if model.cell == "dual":
        yield from (Matrix(width), Matrix(model.mlp_width, width, True))
    if model.cell != "skip":
        yield from _update(model, model.mlp_width)


def stage_parameters(config: Config, stage: int) -> Iterator[Matrix]:
    """Of a pipeline stage; the first and the last hold the token table, a copy each."""
    model, stages = config.model, config.parallel.pipeline
    table = Matrix(padded_vocab(model.vocab_size or 0, config.parallel.tensor), model.width, True)
    for layer in stage_layers(model.layers, stages)[stage]:
        yield from layer_parameters(model, layer)
    if stage in (0, stages - 1):
        yield table
    if stage == stages - 1:
        yield Matrix(model.width)


def stage_layers(layers: int, stages: int) -> list[range]:
    """The layers of each stage: as many each, the first ones one more where they do not divide."""
    bounds = [stage * (layers // stages) + min(stage, layers % stages) for stage in range(stages + 1)]
    return [range(begin, end) for begin, end in pairwise(bounds)]


def _update(model: ModelConfig, inputs: int) -> Iterator[Matrix]:
    yield Matrix(model.width, inputs, True)
    if model.gate == "lstm":
        yield Matrix(2 * model.width, inputs, True, 2)
        yield Matrix(model.width)
    yield Matrix(model.width)
