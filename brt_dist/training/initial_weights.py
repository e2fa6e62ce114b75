"""Starts a run from given weights (`run.init_from`), with a new optimizer and blank memory, at step 0."""

from hashlib import sha256

import torch
import torch.distributed as dist
from torch import Tensor

from brt_dist.config.changes import changes, half_keys
from brt_dist.config.loading import flatten
from brt_dist.config.schema import Config
from brt_dist.errors import CheckpointError
from brt_dist.export.open import open_weights
from brt_dist.export.weights import Weights
from brt_dist.parallel.engine import Engine
from brt_dist.parallel.layout import Layout
from brt_dist.parallel.pieces import LogicalTensor, Region


def load_initial_weights(source: str, config: Config, tokenizer: str, engine: Engine) -> str:
    """Load the weights at `source` into the engine.  Collective.

    Args:
        source: as for `open_weights`.
        config: of this run, with `model.vocab_size` set.
        tokenizer: sha256 of the training data's tokenizer.
        engine: to load into.

    Returns:
        What was loaded, for the log.

    Raises:
        CheckpointError: there are no such weights, they are damaged, or they belong to another model or tokenizer.
    """
    with open_weights(source, verify=False, into=config.model, seed=config.run.seed) as weights:
        _check(weights, config, tokenizer)
        fill(engine, weights)
        return f"weights of {weights.where}" + (f":\n{weights.origin}" if weights.origin else "")


def fill(engine: Engine, weights: Weights) -> None:
    """Verify weights and load them into the engine, with a new optimizer and blank memory.  Collective.

    Raises:
        CheckpointError: they are damaged, or belong to another model.
    """
    _verify(weights, engine.layout)

    def read(tensor: LogicalTensor, region: Region) -> Tensor:
        kind, _, name = tensor.name.partition("/")
        if kind != "weights":
            return torch.zeros(region.size, dtype=tensor.dtype)
        if weights.shapes.get(name) != tensor.shape:
            found = weights.shapes.get(name, "missing")
            raise CheckpointError(f"{weights.where}: tensor {name} is {found}, but the model needs {tensor.shape}")
        return weights.part(name, region)

    engine.load(read, 0)


def _verify(weights: Weights, layout: Layout) -> None:
    """Compare the files with their digests: each rank checks a share, and all learn of any problem.  Collective."""
    problem = None
    try:
        if weights.verify is not None:
            weights.verify(layout.rank, layout.world_size)
    except CheckpointError as error:
        problem = str(error)
    problems: list[str | None] = [None] * layout.world_size
    dist.all_gather_object(problems, problem)
    for found in problems:
        if found is not None:
            raise CheckpointError(found)


def check_initial_weights(source: str, config: Config, tokenizer: str) -> None:
    """Check from the metadata alone that a run can start from the weights at `source`; the ranks verify the content.

    Args:
        source: as for `open_weights`.
        config: of this run, with `model.vocab_size` set.
        tokenizer: sha256 of the training data's tokenizer.

    Raises:
        CheckpointError: as for :func:`load_initial_weights`.
    """
    with open_weights(source, verify=False, into=config.model) as weights:
        _check(weights, config, tokenizer)


def _check(weights: Weights, config: Config, tokenizer: str) -> None:
    before = flatten(config.model_copy(update={"model": weights.model}))
    now = flatten(config)
    # these may differ: they do not change what the weights mean
    terms = ("model.dropout", *half_keys(now, "beside_weights"))
    found = [str(change) for change in changes(before, now, (*config.run.allow, *terms))]
    if weights.tokenizer is not None and "data.dataset" not in config.run.allow:
        digest = sha256(weights.tokenizer).hexdigest()
        if digest != tokenizer:
            found.append(
                f"data.dataset: the weights were trained with tokenizer {digest[:12]}, but the dataset was built with "
                f"{tokenizer[:12]}; rebuild it with the weights' tokenizer, or add data.dataset to run.allow"
            )
    if found:
        raise CheckpointError(
            f"run.init_from={config.run.init_from}: the weights do not fit this run:\n"
            + "\n".join(f"  - {text}" for text in found)
        )
