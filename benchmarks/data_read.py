"""`python -m benchmarks.data_read`: how fast tokens are read, and what a late position in a large corpus costs.

Reading, alternating in one run: our segments (input, target, mask, starts of 8 streams, from any position); the plain
`webdataset` package reading the same shards from the first byte to the last, which is the least that any reader of them
does (no order, no streams, no targets); and, if `litdata` is installed, its StreamingDataset with a TokensLoader
(blocks of tokens of the same documents, in its own order and format).  Figures are medians; ratios are to ours.

Position: a cursor at step 1,000,000 of an index of ten million documents is restored and advanced.

--tokens N   tokens of the dataset, about (20,000,000)      --turns N   turns of each reader (5)
--documents N   documents of the index (10,000,000)
"""

import argparse
import importlib.util
import json
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from brt_dist.data.cursor import Cursor
from brt_dist.data.dataset import Dataset
from brt_dist.data.reader import SegmentReader
from brt_dist.data.stream_schedule import StreamSchedule
from pipelines.build import BuildSettings, build

STREAMS, SEGMENT, WINDOW = 8, 4096, 512


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.data_read", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--tokens", type=int, default=20_000_000, help="tokens of the dataset, about")
    parser.add_argument("--turns", type=int, default=5, help="turns of each reader")
    parser.add_argument("--documents", type=int, default=10_000_000, help="documents of the index")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        position = late_position(Path(place), options.documents)
        folder = make(Path(place), options.tokens)
        readers = {"ours": read_ours, "webdataset": read_webdataset}
        if importlib.util.find_spec("litdata"):
            write_litdata(folder)
            readers["litdata"] = read_litdata
        else:
            print("litdata is not installed, and left out", file=sys.stderr)
        rates: dict[str, list[float]] = {name: [] for name in readers}
        for _ in range(options.turns + 1):  # the first turn fills the page cache
            for name, reader in readers.items():
                began = time.perf_counter()
                rates[name].append(reader(folder) / (time.perf_counter() - began))
    median = {name: statistics.median(found[1:]) for name, found in rates.items()}
    if options.json:
        print(json.dumps({"tokens_per_second": median, "position": position}))
        return
    for name, rate in median.items():
        print(f"{name:12} {rate / 1e6:8.1f} million tokens/s   {rate / median['ours']:.2f} of ours")
    cost = f"{position['seconds']:.3f} s, {position['megabytes']:.0f} MB"
    print(f"step 1,000,000 of {options.documents:,} documents: {cost}")


def make(place: Path, tokens: int) -> Path:
    """A dataset of documents of 1,000 to 40,000 bytes."""
    random, corpus, size = np.random.default_rng(0), place / "corpus", 0
    corpus.mkdir()
    while size < tokens:
        text = random.integers(97, 123, random.integers(1_000, 40_000)).astype(np.uint8).tobytes()
        (corpus / f"{size:012d}.txt").write_bytes(text)
        size += len(text)
    return build(BuildSettings((str(corpus),), tokenizer="bytes", shard_size=4 << 20), place / "set", workers=0).folder


def read_ours(folder: Path) -> int:
    """As many tokens as the dataset has, as training reads them."""
    with Dataset.open(folder) as dataset:
        schedule = StreamSchedule(dataset.parts, streams=STREAMS, segment=SEGMENT, window=WINDOW, seed=0)
        reader, cursor, read = SegmentReader(dataset, schedule), schedule.start(), 0
        while read < dataset.record.tokens:
            plan, cursor = schedule.step(cursor)
            reader.read(plan, range(STREAMS))
            read += int(plan.length.sum())
    return read


def read_webdataset(folder: Path) -> int:
    """Every token of the shards, one document after the other."""
    import webdataset

    read = 0
    for sample in webdataset.WebDataset([str(path) for path in sorted(folder.glob("*.tar"))], shardshuffle=False):
        read += np.frombuffer(sample["tokens"], dtype="<u2").astype(np.int64).size
    return read


def write_litdata(folder: Path) -> None:
    """The documents of our dataset in litdata's own format, beside it."""
    from litdata import TokensLoader, optimize

    with Dataset.open(folder) as dataset:
        documents = len(dataset.lengths)
    optimize(
        partial(litdata_document, folder),
        list(range(documents)),
        str(folder.parent / "litdata"),
        num_workers=1,
        chunk_bytes="4MB",
        item_loader=TokensLoader(),
    )


def litdata_document(folder: Path, number: int) -> Iterator[Any]:
    import torch

    with Dataset.open(folder) as dataset:
        yield torch.from_numpy(dataset.tokens(number, 0, int(dataset.lengths[number])).astype(np.int32))


def read_litdata(folder: Path) -> int:
    """Every whole block of tokens, one after the other."""
    from litdata import StreamingDataset, TokensLoader

    loader = TokensLoader(block_size=SEGMENT)
    return sum(
        len(block) for block in StreamingDataset(str(folder.parent / "litdata"), item_loader=loader, shuffle=False)
    )


def late_position(place: Path, documents: int) -> dict[str, float]:
    """Seconds to take up a cursor at step 1,000,000 and make a step, and by how much memory grows meanwhile."""
    path = place / "documents.npy"
    lengths = np.random.default_rng(0).integers(500, 20_000, documents)
    np.save(path, np.stack([np.zeros(documents, dtype=np.int64), lengths]))
    del lengths
    handed_out = 10**6 * STREAMS
    late = replace(Cursor.fresh(STREAMS), next=(handed_out,), tokens=(handed_out * 10_000,))
    text = json.dumps(late.to_json())
    before, began = _resident(), time.perf_counter()
    schedule = StreamSchedule(np.load(path, mmap_mode="r")[1], streams=STREAMS, segment=SEGMENT, window=WINDOW, seed=0)
    schedule.step(Cursor.from_json(json.loads(text)))
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "megabytes": (_resident() - before) / 1e6}


def _resident() -> int:
    """Bytes of memory that this process has now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


if __name__ == "__main__":
    main()
