"""Text samples from prompts, the beginnings of documents."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from brt_dist.data.dataset import Dataset
from brt_dist.data.mixture import Mixture
from brt_dist.data.tokenizers import load_tokenizer
from brt_dist.events import Sample
from brt_dist.generation.sample import sample
from brt_dist.parallel.engine import Engine

SHOWN = 4  # streams whose text is returned


def samples(
    engine: Engine,
    dataset: Dataset | Mixture,
    count: int,
    seed: int,
    between: Callable[[int], None] = lambda number: None,
) -> list[Sample]:
    """Continue some documents after their first window, or after less if they are shorter.  Collective.

    Args:
        engine: the model.
        dataset: where the documents are from.
        count: tokens to generate.
        seed: of the sampling.
        between: as for `sample`.

    Returns:
        The samples on rank 0; nothing on other ranks.
    """
    data, window = engine.config.data, engine.config.model.window
    length = min(window, data.segment - count)
    documents = _long_enough(np.asarray(dataset.lengths), length, data.streams)
    length = min(length, *(int(dataset.lengths[document]) for document in documents))
    prompts = np.stack([dataset.tokens(document, 0, length) for document in documents]).astype(np.int64)
    found = sample(engine, prompts, count, seed=seed, between=between)
    if engine.layout.rank:
        return []
    tokenizer = load_tokenizer(Path(dataset.tokenizer))
    return [
        Sample(document, tokenizer.decode(ids[:length]), tokenizer.decode(ids[length:]))
        for document, ids in zip(documents[:SHOWN], found, strict=False)
    ]


def _long_enough(lengths: npt.NDArray[np.int64], wanted: int, streams: int) -> list[int]:
    """A document for each stream, spread over those with at least `wanted` tokens, or over all if there are none."""
    known = np.flatnonzero(lengths >= wanted)
    known = known if known.size else np.arange(lengths.size)
    return [int(known[number * known.size // streams]) for number in range(streams)]
