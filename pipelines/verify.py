"""Checking a finished dataset down to the last byte."""

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import numpy as np
import numpy.typing as npt

from brt_dist.data.format import (
    DOCUMENTS_FILE,
    HASHES_FILE,
    TOKENIZER_FILE,
    DatasetRecord,
    dataset_digest,
    index_name,
    load_dataset,
    load_index,
    open_documents,
    open_hashes,
)
from brt_dist.errors import DataError
from pipelines.cluster import available_cores
from pipelines.shards import verify_shard


def verify(
    folder: Path, *, workers: int | None = None, progress: Callable[[int, int], None] | None = None
) -> tuple[DatasetRecord, list[str]]:
    """Check every digest of the dataset; returns dataset.json and what is wrong, empty if nothing is.

    Shards are read in parallel by threads: hashing releases Python's lock.  progress: called with (shards done, all).
    DataError: there is no dataset to check.
    """
    record = load_dataset(folder)
    problems = _tokenizer_problems(folder, record)
    if dataset_digest(record.tokenizer.sha256, record.shards) != record.digest:
        problems.append("dataset.json: altered (its digest does not match its shards)")
    found: dict[int, list[str]] = {}
    with ThreadPoolExecutor(workers or available_cores()) as pool:
        tasks = {
            pool.submit(verify_shard, folder, shard, record.dtype, record.tokenizer.vocab_size): number
            for number, shard in enumerate(record.shards)
        }
        for task in as_completed(tasks):
            found[tasks[task]] = task.result()
            if progress:
                progress(len(found), len(tasks))
    problems += [problem for number in sorted(found) for problem in found[number]]
    return record, problems + _documents_problems(folder, record, indexes_are_good=not any(found.values()))


def _tokenizer_problems(folder: Path, record: DatasetRecord) -> list[str]:
    try:
        sha256 = hashlib.sha256((folder / TOKENIZER_FILE).read_bytes()).hexdigest()
    except OSError as error:
        return [f"{TOKENIZER_FILE}: cannot be read: {error}"]
    return [] if sha256 == record.tokenizer.sha256 else [f"{TOKENIZER_FILE}: altered (sha256 differs)"]


def _hashes(folder: Path, record: DatasetRecord) -> tuple[npt.NDArray[np.uint8] | None, list[str]]:
    """hashes.npy, if the dataset has it, and what is wrong with it."""
    if record.hashes_sha256 is None:
        return None, []
    path = folder / HASHES_FILE
    try:
        with open(path, "rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        hashes = open_hashes(path, record.documents)
    except (OSError, DataError) as error:
        return None, [f"{HASHES_FILE}: cannot be read: {error}"]
    return hashes, [] if sha256 == record.hashes_sha256 else [f"{HASHES_FILE}: altered (sha256 differs)"]


def _documents_problems(folder: Path, record: DatasetRecord, indexes_are_good: bool) -> list[str]:
    """Check documents.npy and hashes.npy against their digests and, if the indexes can be trusted, against those."""
    path = folder / DOCUMENTS_FILE
    try:
        with open(path, "rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        documents = open_documents(path, record.documents)
    except (OSError, DataError) as error:
        return [f"{DOCUMENTS_FILE}: cannot be read: {error}"]
    if sha256 != record.documents_sha256:
        return [f"{DOCUMENTS_FILE}: altered (sha256 differs)"]
    hashes, problems = _hashes(folder, record)
    if problems:
        return problems
    begin = 0
    for shard in record.shards if indexes_are_good else ():
        entries = load_index(folder / index_name(shard.name)).entries
        wanted = np.array([(entry.offset, entry.tokens) for entry in entries], dtype=np.int64).reshape(-1, 2).T
        if not np.array_equal(documents[:, begin : begin + len(entries)], wanted):
            return [f"{DOCUMENTS_FILE}: does not agree with {index_name(shard.name)}"]
        if hashes is not None and hashes[begin : begin + len(entries)].tobytes() != b"".join(
            bytes.fromhex(entry.sha256) for entry in entries
        ):
            return [f"{HASHES_FILE}: does not agree with {index_name(shard.name)}"]
        begin += len(entries)
    return []
