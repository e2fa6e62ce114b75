"""The parameters of a model by kind, from its config alone; what a stage of a layout holds of them."""

from collections.abc import Iterator

from brt_dist.config.halves import Matrix
from brt_dist.config.schema import Config, ModelConfig
from brt_dist.config.stages import stage_layers
from brt_dist.model.shapes import padded_vocab


def layer_parameters(model: ModelConfig, layer: int) -> Iterator[Matrix]:
    """Of layer `layer`, from 0."""
    yield from model.mixer_of(layer).parameters(model)
    if model.encoder.crosses(layer):
        yield from model.encoder.cross_parameters(model)
    yield from model.ffn_of(layer).parameters(model)


def stage_parameters(config: Config, stage: int) -> Iterator[Matrix]:
    """Of a pipeline stage; the first and the last hold the token embedding, a copy each."""
    model, stages = config.model, config.parallel.pipeline
    table = Matrix(padded_vocab(model.vocab_size or 0, config.parallel.tensor), model.width, True)
    for layer in stage_layers(config)[stage]:
        yield from layer_parameters(model, layer)
    if stage in (0, stages - 1):
        yield table
    if stage == stages - 1:
        yield Matrix(model.width)
        if model.objective == "oracle":
            yield from model.oracle.parameters(model)
