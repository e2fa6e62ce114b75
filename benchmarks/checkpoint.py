"""`python -m benchmarks.checkpoint`: how long a save stops training, and how long it takes to complete.

Compares three ways in one run, alternating on the same engine with the same state: in the background (as in
training), the same but blocking, and DeepSpeed's own `save_checkpoint`.  Figures are medians; ratios are to the first.
Ours also assembles whole tensors, and hashes and fsyncs every file, which DeepSpeed's does not.

--ranks N    data parallel ranks with ZeRO-1 (2)          --turns N   saves of each kind and size (3)
--folder DIR where to save: the file system to measure (a temporary folder)
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

SIZES = {
    "small": {"layers": 4, "width": 256, "mlp_width": 1024},
    "large": {"layers": 6, "width": 512, "mlp_width": 1536},
}
KINDS = ("background", "waited for", "DeepSpeed")
STEPS_MEANWHILE = 2
VOCAB, SEGMENT = 4096, 64


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.checkpoint", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--ranks", type=int, default=2, help="data parallel ranks with ZeRO-1")
    parser.add_argument("--turns", type=int, default=3, help="saves of each kind and size")
    parser.add_argument("--folder", type=Path, help="where to save")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args()
    os.environ.update(OMP_NUM_THREADS="1", DS_ACCELERATOR="cpu", PYTHONWARNINGS="ignore")
    import torch.multiprocessing as processes

    rows = []
    for size in SIZES:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            arguments = (options.ranks, size, folder, options.turns)
            processes.spawn(measure, arguments, nprocs=options.ranks)  # type: ignore[no-untyped-call]
            rows += json.loads((Path(folder) / "figures.json").read_text())
    if options.json:
        print(json.dumps(rows))
        return
    print(f"{'size':6} {'parameters':>11} {'way':11} {'stall s':>8} {'ratio':>6} {'whole s':>8} {'ratio':>6} {'MB':>7}")
    for row in rows:
        first = next(other for other in rows if other["size"] == row["size"])
        print(
            f"{row['size']:6} {row['parameters']:11,} {row['kind']:11} {row['stall']:8.2f} "
            f"{row['stall'] / first['stall']:6.1f} {row['seconds']:8.2f} {row['seconds'] / first['seconds']:6.1f} "
            f"{row['bytes'] / 1e6:7.0f}"
        )


def measure(rank: int, ranks: int, size: str, folder: str, turns: int) -> None:
    """One rank: train a little, then save in each way in turns; rank 0 writes figures.json."""
    import torch
    import torch.distributed as dist

    from brt_dist.config.schema import Config
    from brt_dist.parallel.device import choose
    from brt_dist.parallel.layout import Layout, finalize, initialize

    torch.set_num_threads(1)
    shape = {"heads": 4, "head_dim": 64, "vocab_size": VOCAB, "window": SEGMENT, "states": 64, "dropout": 0}
    config = Config.model_validate(
        {
            "model": SIZES[size] | shape,
            "data": {"dataset": "none", "segment": SEGMENT, "streams": ranks},
            "parallel": {"data": ranks},
            "run": {"directory": folder, "steps": 1, "precision": "bf16"},
        }
    )
    layout, device = Layout.of(config, rank), choose("cpu", rank)
    initialize(layout, device, store=dist.FileStore(f"{folder}/store", ranks))
    bench = Bench(config, layout, device, Path(folder))
    try:
        rows = {kind: [] for kind in KINDS}  # type: dict[str, list[tuple[float, float]]]
        for _ in range(turns + 1):  # the first warms up: plan, process group, page cache
            for kind in KINDS:
                bench.train()
                dist.barrier()
                rows[kind].append(bench.save(kind))
                dist.barrier()
        if rank == 0:
            figures = [{"size": size, "kind": kind, **bench.figures(kind, rows[kind][1:])} for kind in KINDS]
            (Path(folder) / "figures.json").write_text(json.dumps(figures))
    finally:
        bench.close()
        finalize()


class Bench:
    """An engine with something to save, and both ways to save it."""

    def __init__(self, config: Any, layout: Any, device: Any, folder: Path) -> None:
        import torch

        from brt_dist.checkpoint.storage import FolderStorage
        from brt_dist.checkpoint.store import CheckpointStore
        from brt_dist.parallel.engine import build_engine

        self._folder, self._ranks = folder, layout.data
        self._engine = build_engine(config, layout, device)
        self._store = CheckpointStore(FolderStorage(folder / "ours"), config, layout, "none", print)
        self._tokens = torch.randint(VOCAB, (1, SEGMENT), generator=torch.Generator().manual_seed(layout.rank))
        self._number = 0

    def train(self) -> None:
        """A step of every rank."""
        import torch

        from brt_dist.parallel.micro_batches import StepInput

        self._number += 1
        starts, mask = torch.zeros(1, 1, dtype=torch.bool), torch.ones(1, SEGMENT, dtype=torch.bool)
        step = StepInput(self._number, starts, self._tokens, self._tokens, mask, SEGMENT * self._ranks)
        self._engine.train_step(step, 1e-4)

    def save(self, kind: str) -> tuple[float, float]:
        """Seconds for which training stops, and until the checkpoint is there."""
        began = time.perf_counter()
        if kind == "DeepSpeed":
            self._engine._deepspeed.save_checkpoint(f"{self._folder}/theirs", tag=f"step{self._number}")
            return (seconds := time.perf_counter() - began), seconds
        self._store.save(self._number, 0, {}, {}, self._engine)
        if kind == "waited for":
            self._store.wait()
        stall = time.perf_counter() - began
        for _ in range(STEPS_MEANWHILE):  # as many on all ranks
            self.train()
        self._store.wait()
        (saved,) = self._store.finished()
        return stall, saved.seconds

    def figures(self, kind: str, rows: list[tuple[float, float]]) -> dict[str, Any]:
        place = self._folder / ("theirs" if kind == "DeepSpeed" else "ours")
        return {
            "parameters": sum(parameter.size for parameter in self._engine.parameters),
            "stall": statistics.median(stall for stall, _ in rows),
            "seconds": statistics.median(seconds for _, seconds in rows),
            "bytes": newest_bytes(place),
        }

    def close(self) -> None:
        self._store.close()
        self._engine.close()


def newest_bytes(place: Path) -> int:
    newest = max((entry for entry in place.iterdir() if entry.is_dir()), key=lambda entry: entry.stat().st_mtime)
    return sum(path.stat().st_size for path in newest.rglob("*") if path.is_file())


if __name__ == "__main__":
    main()
