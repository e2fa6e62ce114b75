"""All weights of a model on one rank: for models small enough for that.  Checkpoints never need it."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from brt_dist.parallel.engine import Engine

_KIND = "weights/"


def whole_weights(engine: Engine) -> dict[str, Tensor]:
    """Gather the weights of all ranks on rank 0.  Collective.

    Returns:
        On rank 0 every weight of the model, float32, by logical name, whole and on the host, whatever the layout;
        on other ranks nothing.
    """
    mine = [
        (piece.tensor, piece.region, piece.values.detach().cpu().clone())  # a view would keep its whole storage alive
        for piece in engine.pieces()
        if piece.tensor.name.startswith(_KIND)
    ]
    ranks: list[Any] | None = [None] * engine.layout.world_size if engine.layout.rank == 0 else None
    dist.gather_object(mine, ranks)
    found: dict[str, Tensor] = {}
    for tensor, region, values in (piece for pieces in ranks or [] for piece in pieces):
        name = tensor.name.removeprefix(_KIND)
        if name not in found:
            found[name] = torch.empty(tensor.shape, dtype=tensor.dtype)
        region.put(found[name], values)
    return found
