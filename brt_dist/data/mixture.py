"""Several datasets read as one, by weight.  Documents are numbered consecutively, in the order of the datasets."""

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from brt_dist.data.dataset import Dataset
from brt_dist.data.file_cache import CacheSettings
from brt_dist.errors import DataError


class Mixture:
    """Datasets with weights; has the methods and attributes of `Dataset`, for all of them together.

    Args:
        datasets: at least one.
        weights: shares of the tokens, any positive numbers.

    Attributes:
        parts: for each dataset, the lengths of its documents (K_i,).
        shards: for each dataset, the documents of its shards (S_i,).

    Raises:
        DataError: the datasets were built with different tokenizers.
    """

    def __init__(self, datasets: Sequence[Dataset], weights: Sequence[float]) -> None:
        first = datasets[0]
        for other in datasets[1:]:
            if other.tokenizer_sha256 != first.tokenizer_sha256:
                raise DataError(
                    f"data.mixture: {other.place} was built with a different tokenizer ({other.tokenizer_sha256[:12]}) "
                    f"than {first.place} ({first.tokenizer_sha256[:12]}); rebuild it with "
                    f"--tokenizer {first.place}/tokenizer.json"
                )
        self.datasets = list(datasets)
        self.weights = tuple(weights)
        self.parts = [dataset.lengths for dataset in datasets]
        self.shards = [dataset.shards[0] for dataset in datasets]
        self.documents = sum(dataset.documents for dataset in datasets)
        self.vocab_size, self.tokenizer = first.vocab_size, first.tokenizer
        self.tokenizer_sha256 = first.tokenizer_sha256
        self.is_remote = any(dataset.is_remote for dataset in datasets)
        content = json.dumps([[dataset.digest, weight] for dataset, weight in zip(datasets, weights, strict=True)])
        self.digest = f"sha256:{hashlib.sha256(content.encode()).hexdigest()}"
        self._firsts = np.cumsum([0, *(dataset.documents for dataset in datasets)])[:-1]

    @cached_property
    def lengths(self) -> npt.NDArray[np.int64]:
        """(K,) tokens of all documents; computed when first used, as it takes 8 bytes per document."""
        return np.concatenate(self.parts)

    def length(self, document: int) -> int:
        part, inside = self._find(document)
        return self.datasets[part].length(inside)

    def tokens(self, document: int, offset: int, count: int) -> npt.NDArray[Any]:
        part, inside = self._find(document)
        return self.datasets[part].tokens(inside, offset, count)

    def source(self, document: int) -> dict[str, str]:
        part, inside = self._find(document)
        return {"dataset": str(self.datasets[part].place), **self.datasets[part].source(inside)}

    def expect(self, documents: Sequence[int]) -> None:
        array = np.asarray(documents, dtype=np.int64)
        part = self._firsts.searchsorted(array, side="right") - 1
        for number, dataset in enumerate(self.datasets):
            dataset.expect((array[part == number] - self._firsts[number]).tolist())

    def close(self) -> None:
        for dataset in self.datasets:
            dataset.close()

    def __enter__(self) -> "Mixture":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _find(self, document: int) -> tuple[int, int]:
        if not 0 <= document < self.documents:
            raise IndexError(f"document {document} of {self.documents}")
        part = int(self._firsts.searchsorted(document, side="right")) - 1
        return part, document - int(self._firsts[part])


def open_weighted(
    places: Sequence[tuple[Path | str, float]],
    cache: CacheSettings | None = None,
    report: Callable[[str], None] = lambda _: None,
    check: bool = True,
    verify: bool = True,
) -> Dataset | Mixture:
    """Open the datasets at `places` (place and weight of each); a single one is returned as it is."""
    opened: list[Dataset] = []
    try:
        for place, _ in places:
            opened.append(Dataset.open(place, cache, report, check, verify))
        return opened[0] if len(opened) == 1 else Mixture(opened, [weight for _, weight in places])
    except BaseException:
        for dataset in opened:
            dataset.close()
        raise
