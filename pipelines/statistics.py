"""Numbers and plots of a finished dataset, only from its index: no shard is read."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from brt_dist.data.format import DOCUMENTS_FILE, check_lengths, load_dataset, open_documents
from brt_dist.files import atomic_file

_QUANTILES = {"min": 0.0, "25%": 0.25, "median": 0.5, "75%": 0.75, "99%": 0.99, "max": 1.0}
_COLOUR = "#1f5fa8"


def statistics(folder: Path) -> dict[str, Any]:
    """Totals, lengths of documents in tokens, and shares of the sources, as JSON values.

    length_histogram: for each power of two, the documents of from `from` up to but not `to` tokens, and their tokens.
    DataError: no dataset, or its documents.npy cannot be used.
    """
    record = load_dataset(folder)
    lengths = open_documents(folder / DOCUMENTS_FILE, record.documents)[1]
    check_lengths(lengths, folder / DOCUMENTS_FILE)
    quantiles = np.quantile(lengths, list(_QUANTILES.values()), method="nearest").tolist()
    left_out: dict[str, int] = {}
    for source in record.sources:
        for reason, count in source.skipped.items():
            left_out[reason] = left_out.get(reason, 0) + count
    return {
        "digest": record.digest,
        "documents": record.documents,
        "tokens": record.tokens,
        "text_bytes": record.text_bytes,
        "bytes_per_token": record.text_bytes / record.tokens,
        "vocab_size": record.tokenizer.vocab_size,
        "tokenizer": record.tokenizer.model_dump(),
        "shards": len(record.shards),
        "document_tokens": {**dict(zip(_QUANTILES, quantiles, strict=True)), "mean": record.tokens / record.documents},
        "length_histogram": _histogram(lengths),
        "left_out": left_out,
        "sources": [source.model_dump() | {"share": source.tokens / record.tokens} for source in record.sources],
    }


def _histogram(lengths: npt.NDArray[np.int64]) -> list[dict[str, int]]:
    powers = np.frexp(lengths.astype(np.float64))[1] - 1  # exact: 2**power <= length < 2**(power + 1)
    documents = np.bincount(powers)
    tokens = np.zeros(documents.size, dtype=np.int64)
    np.add.at(tokens, powers, lengths)
    first = int(powers.min())
    return [
        {"from": 1 << power, "to": 2 << power, "documents": int(documents[power]), "tokens": int(tokens[power])}
        for power in range(first, documents.size)
    ]


def plot_lengths(found: dict[str, Any], path: Path) -> None:
    """Draw how many documents there are of each length."""
    bins = found["length_histogram"]
    names = [f"{entry['from']:,}" for entry in bins]
    _bars(names, [entry["documents"] for entry in bins], "tokens per document, from", "documents", path)


def plot_sources(found: dict[str, Any], path: Path) -> None:
    """Draw how many tokens come from each source."""
    sources = found["sources"]
    _bars([source["name"] for source in sources], [source["tokens"] for source in sources], "source", "tokens", path)


def _bars(names: list[str], heights: list[int], across: str, up: str, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")  # without pyplot: no global state
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.bar(range(len(names)), heights, color=_COLOUR, width=0.9)
    # a name is plain text: `$x$` in it is not a formula
    axes.set_xticks(range(len(names)), names, rotation=45 if len(names) > 6 else 0, parse_math=False)
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.grid(alpha=0.25, axis="y")
    axes.spines[["top", "right"]].set_visible(False)
    with atomic_file(path) as file:
        figure.savefig(file, format="png")
