"""A trained model in one process, from whatever `brt export` and `brt import` read."""

import torch

from brt_dist.export.open import open_weights
from brt_dist.export.weights import Weights, check_shapes
from brt_dist.model.model import BlockRecurrentModel
from brt_dist.model.parameters import logical_parameters


def load_model(source: str, step: int | None = None) -> BlockRecurrentModel:
    """The network with its weights, float32, on the CPU, in evaluation mode.  Inside `single_process()`.

    Args:
        source, step: as for `open_weights`.

    Raises:
        CheckpointError: there are no weights, or they are damaged or not those of their network.
    """
    with open_weights(source, step) as weights:
        return load_weights(weights)


def load_weights(weights: Weights) -> BlockRecurrentModel:
    """The same from weights that are open."""
    model = BlockRecurrentModel(weights.model)
    parameters = list(logical_parameters(model))
    check_shapes(weights.shapes, {parameter.name: parameter.shape for parameter in parameters}, weights.where)
    with torch.no_grad():
        for parameter in parameters:
            parameter.local.copy_(parameter.part(weights.read(parameter.name), 0, 1))
    return model.eval()
