"""What the rules of the config need to know about a dataset."""

import numpy as np

from brt_dist.config.data_rules import DatasetFacts
from brt_dist.config.schema import Config
from brt_dist.data.dataset import Dataset
from brt_dist.data.format import DOCUMENTS_FILE, check_lengths
from brt_dist.data.mixture import Mixture
from brt_dist.data.mixture_order import Deal


def facts_of(dataset: Dataset | Mixture, config: Config | None = None) -> DatasetFacts:
    """The facts of an open dataset.

    Args:
        dataset: one dataset, or a mixture of several.
        config: of a run that trains on it.

    Raises:
        DataError: a document has no tokens.
    """
    for lengths in dataset.parts:
        check_lengths(lengths, f"{getattr(dataset, 'place', 'data.mixture')}/{DOCUMENTS_FILE}")
    documents = dataset.documents
    if config is not None and len(dataset.parts) > 1:
        deal = Deal(dataset.parts, dataset.weights, config.run.seed, dataset.shards, config.data.shuffle_shards)
        fit = deal.documents_until_repeat(config.data.streams)
        documents = fit if fit < config.data.streams else documents
    longest = int(np.max(dataset.lengths, initial=0))
    return DatasetFacts(documents, dataset.vocab_size, dataset.tokenizer_sha256, longest)
