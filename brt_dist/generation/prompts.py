"""The beginnings of documents that samples go on from, and samples as text."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from brt_dist.data.dataset import Dataset
from brt_dist.data.mixture import Mixture
from brt_dist.data.tokenizers import load_tokenizer
from brt_dist.events import Sample
from brt_dist.generation.sample import sample
from brt_dist.parallel.engine import Engine

SHOWN = 4  # streams whose text is looked at


def samples(engine: Engine, dataset: Dataset | Mixture, count: int, seed: int) -> list[Sample]:
    """What the model makes up after the first window of some documents, or after less where that is all.

    Collective; rank 0 alone gets the text.
    """
    data, window = engine.config.data, engine.config.model.window
    length = min(window, data.segment - count)
    documents = _long_enough(np.asarray(dataset.lengths), length, data.streams)
    length = min(length, *(int(dataset.lengths[document]) for document in documents))
    prompts = np.stack([dataset.tokens(document, 0, length) for document in documents]).astype(np.int64)
    found = sample(engine, prompts, count, seed=seed)
    if engine.layout.rank:
        return []
    tokenizer = load_tokenizer(Path(dataset.tokenizer))
    return [
        Sample(document, tokenizer.decode(ids[:length]), tokenizer.decode(ids[length:]))
        for document, ids in zip(documents[:SHOWN], found, strict=False)
    ]


def _long_enough(lengths: npt.NDArray[np.int64], wanted: int, streams: int) -> list[int]:
    """Documents, one for each stream, spread over those with `wanted` tokens, or over all where there are none."""
    known = np.flatnonzero(lengths >= wanted)
    known = known if known.size else np.arange(lengths.size)
    return [int(known[number * known.size // streams]) for number in range(streams)]
