"""Describes datasets, documents and streams, as JSON values."""

from typing import Any

import numpy as np

from brt_dist.data.cursor import Cursor
from brt_dist.data.dataset import Dataset
from brt_dist.data.format import DOCUMENTS_FILE, check_lengths, storage_type
from brt_dist.data.mixture import Mixture
from brt_dist.data.stream_schedule import StreamSchedule
from brt_dist.data.tokenizers import load_tokenizer
from brt_dist.errors import DataError

_TOKENS_PER_CHARACTER = 4  # no tokenizer makes more than four tokens (bytes) from a character


def describe_dataset(dataset: Dataset) -> dict[str, Any]:
    """Totals, and how long the documents are."""
    record = dataset.record
    check_lengths(dataset.lengths, f"{dataset.place}/{DOCUMENTS_FILE}")
    quantiles = np.quantile(dataset.lengths, [0, 0.25, 0.5, 0.75, 1], method="nearest").tolist()
    return {
        "dataset": str(dataset.place),
        "digest": dataset.digest,
        "documents": record.documents,
        "tokens": record.tokens,
        "bytes_per_token": record.text_bytes / record.tokens,
        "tokenizer": record.tokenizer.model_dump(),
        "dtype": record.dtype,
        "shards": len(record.shards),
        "document_tokens": dict(zip(("min", "25%", "median", "75%", "max"), quantiles, strict=True)),
        "sources": [source.model_dump() for source in record.sources],
    }


def describe_document(dataset: Dataset, document: int, characters: int) -> dict[str, Any]:
    """Describe a document: where it came from, its length, and the beginning of its text.

    Raises:
        DataError: there is no such document.
    """
    if not 0 <= document < dataset.lengths.size:
        raise DataError(f"document {document} does not exist; the dataset has 0 to {dataset.lengths.size - 1}")
    return {
        "document": document,
        **dataset.source(document),
        "tokens": int(dataset.lengths[document]),
        "text": _text(dataset, document, 0, int(dataset.lengths[document]), characters),
    }


def describe_stream(
    dataset: Dataset | Mixture,
    schedule: StreamSchedule,
    stream: int,
    step: int,
    characters: int,
    cursor: Cursor | None = None,
) -> dict[str, Any]:
    """Describe what a stream reads in a step: documents, token ranges, epochs and text of the segment.

    Args:
        dataset: the training data.
        schedule: the stream schedule.
        stream: its number.
        step: its number, from 1.
        characters: how much text to show of each document.
        cursor: before the step; None: the cursor of a run whose number of streams never changed.

    Raises:
        DataError: there is no such stream.
    """
    if not 0 <= stream < schedule.streams:
        raise DataError(f"stream {stream} does not exist; the run has 0 to {schedule.streams - 1}")
    # block by block, to see the ordinal of each document
    blocks = schedule.block_by_block()
    cursor = blocks.at((step - 1) * schedule.blocks) if cursor is None else cursor
    ranges: list[dict[str, Any]] = []
    for block in range(schedule.blocks):
        plan, cursor = blocks.step(cursor)
        document, offset = int(plan.document[stream, 0]), int(plan.offset[stream, 0])
        if block == 0 or plan.starts[stream, 0]:
            ranges.append(
                {
                    "document": document,
                    **{name: text for name, text in dataset.source(document).items() if name in ("dataset", "source")},
                    "epoch": int(cursor.ordinal[stream]) // int(schedule.parts[cursor.part[stream]].size),
                    "first_block": block,
                    "begin": offset,
                    "end": offset,
                    "of": dataset.length(document),
                }
            )
        ranges[-1]["end"] = offset + int(plan.length[stream, 0])
    for item in ranges:
        item["text"] = _text(dataset, item["document"], item["begin"], item["end"], characters)
    return {"stream": stream, "step": step, "documents_handed_out": sum(cursor.next), "reads": ranges}


def _text(dataset: Dataset | Mixture, document: int, begin: int, end: int, characters: int) -> str:
    count = min(end - begin, characters * _TOKENS_PER_CHARACTER)
    ids = dataset.tokens(document, begin, count).astype(storage_type("uint32"))
    return load_tokenizer(dataset.tokenizer).decode(ids)[:characters]
