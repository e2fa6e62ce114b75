"""`python -m tests.parallel.relayout`: save and continue on every layout, as a table; exit 1 if one is off.

Two things are compared.  What is loaded and saved again must be the same files bit for bit: nothing of weights,
optimizer state or memory depends on the layout.  And the next steps must have the losses of one process that was never
stopped.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from brt_dist.config.schema import Config
from tests.datasets import make_dataset
from tests.parallel.pool import RankPool

BEFORE, AFTER = 3, 4  # steps
LOSS = 1e-5

LAYOUTS: dict[str, dict[str, Any]] = {
    "one": {},
    "tp2": {"tensor": 2},
    "pp2": {"pipeline": 2},
    "dp2": {"data": 2},
    "tp2-pp2": {"tensor": 2, "pipeline": 2},
    "dp2-zero3": {"data": 2, "zero_stage": 3},
    "tp2-pp2-dp2": {"tensor": 2, "pipeline": 2, "data": 2, "stage_layers": (1, 2)},  # 2 and 1 on the others
}


def documents(folder: Path) -> Path:
    """A dataset whose documents begin and end in mid-segment."""
    import random

    draw = random.Random(4)
    make_dataset(folder, ["".join(draw.choices("abcdefgh \n", k=draw.randint(20, 700))) for _ in range(12)])
    return folder / "dataset"


def config(dataset: Path, folder: Path, parallel: dict[str, Any], /, **sections: dict[str, Any]) -> Config:
    """Three layers, a vocabulary that is padded differently by each tensor parallel size."""
    given: dict[str, dict[str, Any]] = {
        "model": {
            "layers": 3, "width": 32, "heads": 2, "head_dim": 16, "mlp_width": 64, "window": 16, "states": 8,
            "recurrent_layers": (1,), "dropout": 0.1, "vocab_size": 256,
        },
        "data": {"dataset": dataset, "segment": 32, "streams": 4},
        "parallel": {"micro_batch": 1, **parallel},
        "optimizer": {"learning_rate": 3e-3, "warmup_steps": 2},
        "run": {"directory": folder, "steps": BEFORE + AFTER, "precision": "fp32", "keep_checkpoints": 9,
                "evaluation_steps": 2, "memory_every": 3},
    }  # fmt: skip
    if "mixers" in sections.get("model", {}):  # a whole model, in the current spelling
        given["model"] = {}
    return Config.model_validate({name: section | sections.get(name, {}) for name, section in given.items()})


def attempt(rank: int, store: str, given: Config, steps: int, copy: str | None = None) -> list[float]:
    """Go on from the newest checkpoint for `steps` steps and save; the losses.  copy: save there before the first."""
    import torch.distributed as dist

    from brt_dist.data.dataset import Dataset
    from brt_dist.event_log import EventLog
    from brt_dist.parallel.device import choose
    from brt_dist.parallel.layout import Layout, finalize, initialize
    from brt_dist.training.stopping import StopFlag

    layout = Layout.of(given, rank)
    device = choose("cpu", rank)
    initialize(layout, device, 120.0, dist.FileStore(store, layout.world_size))
    from brt_dist.checkpoint.storage import FolderStorage
    from brt_dist.checkpoint.store import CheckpointStore
    from brt_dist.training.build import build_trainer

    run = Path(given.run.directory)
    events = EventLog(run, 1, enabled=rank == 0)
    try:
        with Dataset.open(given.data.dataset) as data:
            trainer = build_trainer(given, run, layout, device, events, data, None, StopFlag())
            trainer.resume()
            done = trainer.state
            if copy:
                other = CheckpointStore(FolderStorage(Path(copy)), given, layout, data.digest, print)
                other.save(done.step, done.tokens, done.cursor.to_json(), {}, trainer.engine)
                other.wait()
                other.close()
            trainer.train_until(done.step + steps)
            trainer.close()
    finally:
        events.close()
        finalize()
    lines = (json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()) if rank == 0 else ()
    return [event["loss"] for event in lines if event["event"] == "step"][-steps:]


def saved(folder: Path) -> dict[str, Any]:
    """What must not depend on the layout, of the newest checkpoint in `folder`.

    Not by `latest`: a run killed after the last save, before that is written, has nothing more to save.
    """
    manifest = json.loads((max(folder.glob("step_*")) / "manifest.json").read_text())
    return {key: manifest[key] for key in ("step", "updates", "tokens", "cursor", "files", "tensors")}


class Relayout:
    """Saves once on each layout and continues on others."""

    def __init__(self, ranks: RankPool, folder: Path, **sections: dict[str, Any]) -> None:
        self._ranks, self._folder, self._sections = ranks, folder, sections
        self.dataset = documents(folder)
        self._sources: dict[str, Path] = {}
        straight = self._config("one", folder / "straight")
        self.losses = self._run(straight, BEFORE + AFTER)[BEFORE:]

    def compare(self, source: str, target: str) -> float:
        """The largest difference of a loss.  AssertionError: the files are not the same."""
        start = self._source(source)
        run = self.copy(source, self._folder / f"{source} to {target}")
        losses = self._run(self._config(target, run), AFTER, str(run / "copy"))
        here, there = saved(start / "checkpoints"), saved(run / "copy")
        changed = [key for key in here if here[key] != there[key]]
        assert not changed, f"loaded on {target} and saved again, {', '.join(changed)} changed"
        return max(abs(a - b) for a, b in zip(losses, self.losses, strict=True))

    def copy(self, source: str, run: Path) -> Path:
        """A run directory that continues from what `source` saved."""
        shutil.copytree(self._source(source) / "checkpoints", run / "checkpoints")
        return run

    def _source(self, layout: str) -> Path:
        if layout not in self._sources:
            run = self._folder / layout
            self._run(self._config(layout, run), BEFORE)
            self._sources[layout] = run
        return self._sources[layout]

    def _config(self, layout: str, run: Path) -> Config:
        run.mkdir(exist_ok=True)
        return config(self.dataset, run, LAYOUTS[layout], **self._sections)

    def _run(self, given: Config, steps: int, copy: str | None = None) -> list[float]:
        losses: list[float] = self._ranks.run(given.parallel.world_size, attempt, given, steps, copy)[0]
        return losses


def main() -> int:
    off = 0
    with RankPool() as ranks, tempfile.TemporaryDirectory() as folder:
        relayout = Relayout(ranks, Path(folder))
        print("largest difference of the next losses; saved on (rows), went on on (columns)")
        print(f"{'':12}", *(f"{name:>12}" for name in LAYOUTS), flush=True)
        for source in LAYOUTS:
            cells = []
            for target in LAYOUTS:
                try:
                    difference = relayout.compare(source, target)
                    cells.append(f"{difference:12.1e}")
                    off += difference > LOSS
                except AssertionError as error:
                    print(error, file=sys.stderr)
                    cells.append(f"{'FAILED':>12}")
                    off += 1
            print(f"{source:12}", *cells, flush=True)
    print(f"{len(LAYOUTS) ** 2} pairs, {off} off")
    return int(off > 0)


if __name__ == "__main__":
    sys.exit(main())
