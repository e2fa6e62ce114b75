"""The first step of a run that starts from the weights of another: new optimizer, blank memory, step 0."""

from hashlib import sha256

import torch
from torch import Tensor

from brt_dist.config.changes import changes, half_keys
from brt_dist.config.loading import flatten
from brt_dist.config.schema import Config
from brt_dist.errors import CheckpointError
from brt_dist.export.open import open_weights
from brt_dist.export.weights import Weights
from brt_dist.parallel.engine import Engine
from brt_dist.parallel.pieces import LogicalTensor, Region


def begin_from(source: str, config: Config, tokenizer: str, engine: Engine) -> str:
    """Load the weights of `source` into the engine; returns what they are, for the log.  Collective.

    Args:
        source: as for `open_weights`.
        config: of this run, with the size of the vocabulary.
        tokenizer: sha256 of that of the training data.

    Raises:
        CheckpointError: there are no such weights, they are damaged, or of another network or tokenizer.
    """
    with open_weights(source) as weights:
        _check(weights, config, tokenizer)

        def read(tensor: LogicalTensor, region: Region) -> Tensor:
            kind, _, name = tensor.name.partition("/")
            if kind != "weights":
                return torch.zeros(region.size, dtype=tensor.dtype)
            if weights.shapes.get(name) != tensor.shape:
                found = weights.shapes.get(name, "missing")
                raise CheckpointError(f"{weights.where}: tensor {name} is {found}, the network has {tensor.shape}")
            whole = weights.read(name)
            return region.take(lambda slices: whole[slices])

        engine.load(read, 0)
        return f"weights of {weights.where}"


def check_beginning(source: str, config: Config, tokenizer: str) -> None:
    """Whether a run could begin with the weights of `source`, by what is said of them; the ranks read and verify them.

    Args and errors: as for `begin_from`.
    """
    with open_weights(source, verify=False) as weights:
        _check(weights, config, tokenizer)


def _check(weights: Weights, config: Config, tokenizer: str) -> None:
    before = flatten(config.model_copy(update={"model": weights.model}))
    now = flatten(config)
    # these may differ: the weights mean the same
    terms = ("model.dropout", *half_keys(now, "beside_weights"))
    found = [str(change) for change in changes(before, now, (*config.run.allow, *terms))]
    if weights.tokenizer is not None and "data.dataset" not in config.run.allow:
        digest = sha256(weights.tokenizer).hexdigest()
        if digest != tokenizer:
            found.append(
                f"data.dataset: tokenizer {digest[:12]} made the tokens that the weights know, {tokenizer[:12]} those "
                "of the dataset; build it with theirs, or name data.dataset in run.allow"
            )
    if found:
        raise CheckpointError(
            f"run.init_from={config.run.init_from}: the weights are not of this model:\n"
            + "\n".join(f"  - {text}" for text in found)
        )
