"""`python -m benchmarks.data_build`: how fast shards are built, and with how much memory, at two corpus sizes.

Compares in one run, alternating, on the same JSONL files with the same tokenizer (BPE, 4096) and two processes:
`brt data build` on Ray; a minimal `multiprocessing` loop (tokenizes lines and writes webdataset tars, but hashes,
syncs, indexes, resumes and checks nothing); and `datatrove`'s tokenizer step, if that package is installed.  Seconds
are those of the whole command without the start of Ray and of Python; figures are medians, ratios are to ours.

Memory is the largest sum of the resident memory of the working processes (driver and tasks, not Ray's own), sampled ten
times a second, for the smaller and the larger corpus.

--megabytes A B   sizes of the two corpora (16 160)      --turns N   builds of the smaller corpus of each kind (3)
"""

import argparse
import importlib.util
import json
import multiprocessing
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from brt_dist.data.tokenizers import load_tokenizer, train_bpe
from pipelines.build import BuildSettings, build
from pipelines.cluster import running_ray

WORKERS, FILES, VOCAB = 2, 8, 4096
SHARD_BYTES = 4 << 20


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.data_build", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--megabytes", type=int, nargs=2, default=[16, 160], help="sizes of the two corpora")
    parser.add_argument("--turns", type=int, default=3, help="builds of the smaller corpus of each kind")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args()
    kinds = {"brt data build": build_ours, "a loop": build_in_loop}
    if importlib.util.find_spec("datatrove"):
        kinds["datatrove"] = build_datatrove
    else:
        print("datatrove is not installed, and left out", file=sys.stderr)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as place, running_ray(WORKERS):
        folder = Path(place)
        small, large = (make(folder / f"corpus{size}", size * 1_000_000) for size in options.megabytes)
        (folder / "tokenizer.json").write_bytes(train_bpe(texts(small), VOCAB))
        jobs = [(turn, kind, small) for turn in range(options.turns) for kind in kinds]
        jobs += [(0, kind, large) for kind in kinds]
        for number, (turn, kind, corpus) in enumerate(jobs):
            with Memory() as memory:
                began = time.perf_counter()
                tokens = kinds[kind](corpus, folder / f"out{number}", folder / "tokenizer.json")
                seconds = time.perf_counter() - began
            row = {"kind": kind, "turn": turn, "corpus": corpus.name, "rate": tokens / seconds, "memory": memory.most}
            rows.append(row)
            print(f"{corpus.name}, {kind}: {tokens / seconds:,.0f} tokens/s", file=sys.stderr)
    if options.json:
        print(json.dumps(rows))
        return
    print(
        f"{'':15} {'tokens/s':>10} {'ratio':>6}   MB of memory at {options.megabytes[0]} and {options.megabytes[1]} MB"
    )
    for kind in kinds:
        rates = {name: median(rows, name, small.name, "rate") for name in kinds}
        memory_at = [median(rows, kind, corpus.name, "memory") / 1e6 for corpus in (small, large)]
        print(f"{kind:15} {rates[kind]:10,.0f} {rates[kind] / rates['brt data build']:6.2f}   "
              f"{memory_at[0]:6.0f} {memory_at[1]:6.0f}")  # fmt: skip


def median(rows: list[dict[str, Any]], kind: str, corpus: str, key: str) -> float:
    return statistics.median(row[key] for row in rows if (row["kind"], row["corpus"]) == (kind, corpus))


def make(folder: Path, size: int) -> Path:
    """JSONL files of made-up words, `size` bytes in all; documents of 200 to 20,000 words."""
    random = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = np.array(["".join(random.choice(letters, random.integers(2, 10))) for _ in range(20_000)])
    shares = 1 / np.arange(1, len(words) + 1)
    folder.mkdir()
    for number in range(FILES):
        with open(folder / f"{number}.jsonl", "w") as file:
            while file.tell() < size / FILES:
                text = " ".join(random.choice(words, random.integers(200, 20_000), p=shares / shares.sum()))
                file.write(json.dumps({"text": text}) + "\n")
    return folder


def texts(corpus: Path) -> Iterator[str]:
    for path in sorted(corpus.glob("*.jsonl")):
        for line in path.open():
            yield json.loads(line)["text"]


def build_ours(corpus: Path, out: Path, tokenizer: Path) -> int:
    settings = BuildSettings((str(corpus),), tokenizer=str(tokenizer), shard_size=SHARD_BYTES)
    return build(settings, out, workers=WORKERS).dataset.tokens


def build_in_loop(corpus: Path, out: Path, tokenizer: Path) -> int:
    """A process for each core takes a file at a time."""
    out.mkdir()
    jobs = [(path, out / f"{path.stem}.tar", tokenizer) for path in sorted(corpus.glob("*.jsonl"))]
    with multiprocessing.get_context("forkserver").Pool(WORKERS) as pool:
        return sum(pool.map(write_tar, jobs, chunksize=1))


def write_tar(job: tuple[Path, Path, Path]) -> int:
    from webdataset import TarWriter

    source, target, tokenizer_file = job
    tokenizer, tokens = load_tokenizer(tokenizer_file), 0
    with TarWriter(str(target), encoder=False) as writer, source.open() as lines:
        for number, line in enumerate(lines):
            ids = tokenizer.encode(json.loads(line)["text"]).astype("<u2")
            writer.write({"__key__": f"{number:08d}", "tokens": ids.tobytes()})
            tokens += ids.size
    return tokens


def build_datatrove(corpus: Path, out: Path, tokenizer: Path) -> int:
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.tokens import DocumentTokenizer

    steps = [JsonlReader(str(corpus)), DocumentTokenizer(str(out), str(tokenizer), shuffle_documents=False)]
    logs = str(out.with_suffix(".logs"))
    LocalPipelineExecutor(steps, tasks=FILES, workers=WORKERS, logging_dir=logs).run()
    return sum(path.stat().st_size // 2 for path in out.glob("*.ds"))


class Memory:
    """Context manager: `most` is the largest sum of resident bytes of this process and the workers below it."""

    def __init__(self) -> None:
        self.most = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> "Memory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _look(self) -> None:
        this = psutil.Process()
        while not self._done.wait(0.1):
            found = 0
            for process in [this, *this.children(recursive=True)]:
                try:
                    name = " ".join(process.cmdline()[:1])
                    if process == this or not _is_rays_own(name, process):
                        found += process.memory_info().rss
                except psutil.Error:
                    continue
            self.most = max(self.most, found)


def _is_rays_own(name: str, process: psutil.Process) -> bool:
    """Ray's daemons, and its workers that wait for work."""
    line = " ".join(process.cmdline())
    return "ray::IDLE" in name or ("/ray/" in line and "ray::" not in name) or "raylet" in line


if __name__ == "__main__":
    main()
