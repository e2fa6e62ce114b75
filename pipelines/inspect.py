"""Looking into a dataset: plain descriptions (JSON values), for people and programs alike."""

from typing import Any

import numpy as np

from brt_dist.errors import DataError
from pipelines.dataset import Dataset
from pipelines.format import storage_type
from pipelines.schedule import StreamSchedule
from pipelines.tokenizers import load_tokenizer

_TOKENS_PER_CHARACTER = 4  # no tokenizer makes more than four tokens (bytes) of a character


def describe_dataset(dataset: Dataset) -> dict[str, Any]:
    """Totals, and how long the documents are."""
    record = dataset.record
    quantiles = np.quantile(dataset.lengths, [0, 0.25, 0.5, 0.75, 1], method="nearest").tolist()
    return {
        "dataset": str(dataset.folder),
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
    """A document: where it came from, its length, and its first text.  DataError: there is no such document."""
    if not 0 <= document < dataset.lengths.size:
        raise DataError(f"document {document} does not exist; the dataset has 0 to {dataset.lengths.size - 1}")
    return {
        "document": document,
        **dataset.source(document),
        "tokens": int(dataset.lengths[document]),
        "text": _text(dataset, document, 0, int(dataset.lengths[document]), characters),
    }


def describe_stream(
    dataset: Dataset, schedule: StreamSchedule, stream: int, step: int, characters: int
) -> dict[str, Any]:
    """What a stream reads at a step: its epoch, and the documents and token ranges of the segment, with their text."""
    if not 0 <= stream < schedule.streams:
        raise DataError(f"stream {stream} does not exist; the run has 0 to {schedule.streams - 1}")
    cursor = schedule.at(step)
    plan, _ = schedule.step(cursor)
    ranges: list[dict[str, Any]] = []
    for block in range(schedule.blocks):
        document, offset = int(plan.document[stream, block]), int(plan.offset[stream, block])
        length = int(plan.length[stream, block])
        if block == 0 or plan.starts[stream, block]:
            place = str(dataset.source(document)["source"])
            ranges.append({"document": document, "source": place, "first_block": block, "begin": offset, "end": offset})
        ranges[-1]["end"] = offset + length
    for item in ranges:
        item["of"] = int(dataset.lengths[item["document"]])
        item["text"] = _text(dataset, item["document"], item["begin"], item["end"], characters)
    return {
        "stream": stream,
        "step": step,
        "epoch": int(cursor.ordinal[stream]) // int(dataset.lengths.size),
        "documents_handed_out": int(cursor.ordinal.max()) + 1,
        "reads": ranges,
    }


def _text(dataset: Dataset, document: int, begin: int, end: int, characters: int) -> str:
    count = min(end - begin, characters * _TOKENS_PER_CHARACTER)
    ids = dataset.tokens(document, begin, count).astype(storage_type("uint32"))
    return load_tokenizer(dataset.tokenizer).decode(ids)[:characters]
