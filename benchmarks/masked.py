"""FNet beside an encoder of BERT's shape: masked tokens restored, and the time of a step, at equal parameters.

`python -m benchmarks.masked --out build/masked` trains both with `model.objective=mlm` on bytes of `brt data corpus
books`, on one CPU with one thread, by the loop of `brt train`, and evaluates them on the held-out books.  It writes
OUT/masked.json after each model and prints a table; run it again to continue.  --times measures steps instead, which
take turns, so that a temporarily busy machine slows both alike.
"""

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brt_dist.files import write_atomic

if TYPE_CHECKING:
    from brt_dist.config.schema import Config
    from brt_dist.parallel.device import Device

Cell = dict[str, Any]
KINDS = {"bidirectional": "attention (BERT)", "fnet": "FNet"}
REFERENCE = "bidirectional"  # both get its number of parameters
SEGMENTS = (128, 512, 2048)  # tokens that are mixed, where steps are timed
TOKENS = 2048  # of a step, a segment at least


def configuration(kind: str, segment: int, vocabulary: int, seed: int, steps: int, **places: Any) -> "Config":
    """A run of a kind, with as many parameters as the reference, by the width of the FFN.

    Args:
        segment: tokens that are mixed.
        places: dataset, validation and directory.
    """
    from benchmarks.models import parameter_count, with_parameters
    from brt_dist.config.schema import Config

    def of(kind: str) -> Config:
        return Config.model_validate(
            {
                "model": {
                    "objective": "mlm", "layers": 4, "width": 64, "heads": 4, "head_dim": 16, "window": segment,
                    "vocab_size": vocabulary, "mixers": {kind: {}}, "ffns": {"relu": {"width": 256}}, "dropout": 0.0,
                },
                "data": {
                    "dataset": places.get("dataset", "none"), "validation": places.get("validation"),
                    "segment": segment, "streams": TOKENS // segment,
                },
                "parallel": {"micro_batch": TOKENS // segment, "zero_stage": 0},
                "optimizer": {"learning_rate": 3e-3, "warmup_steps": min(50, steps // 2), "clip_norm": 1.0},
                "run": {
                    "directory": places.get("directory", "none"), "steps": steps, "precision": "fp32", "seed": seed,
                    "device": "cpu", "evaluation_steps": 40, "evaluate_parts": False, "evaluate_training": False,
                    "memory_every": 0, "checkpoint_every": 200, "keep_checkpoints": 1, "keep_best": 0,
                },
            }
        )  # fmt: skip

    config = of(kind)
    return config.model_copy(update={"model": with_parameters(config.model, parameter_count(of(REFERENCE).model))})


def trained(kind: str, seed: int, steps: int, out: Path, folders: tuple[Path, Path], device: "Device") -> Cell:
    """Train a model, and evaluate it on held-out text."""
    from benchmarks.models import mlp_width, parameter_count, train_run
    from brt_dist.data.dataset import Dataset
    from brt_dist.event_log import events_of
    from brt_dist.events import EvaluationEvent

    train, validation = (Dataset.open(folder) for folder in folders)
    config = configuration(
        kind, SEGMENTS[0], train.vocab_size + 1, seed, steps, dataset=folders[0], validation=folders[1],
        directory=out / "runs" / f"{kind}-{seed}-{steps}",
    )  # fmt: skip
    train_run(config, train, validation, device)
    found = [event for event in events_of(config.run.directory, EvaluationEvent) if event.memory == "carried"][-1]
    return {
        "kind": kind, "seed": seed, "steps": steps, "tokens_per_step": TOKENS, "accuracy": found.accuracy,
        "bits_per_token": found.bits_per_token, "masked_tokens": found.tokens,
        "parameters": parameter_count(config.model), "mlp_width": mlp_width(config.model),
    }  # fmt: skip


def times(vocabulary: int, repeats: int, device: "Device") -> list[Cell]:
    """CPU milliseconds of a training step of each kind at each length, forward to update; steps take turns."""
    import torch

    from brt_dist.parallel.engine import build_engine
    from brt_dist.parallel.layout import Layout
    from brt_dist.parallel.micro_batches import StepInput

    cells = []
    for segment in SEGMENTS:
        shape = (TOKENS // segment, segment)
        tokens = torch.randint(vocabulary, shape, generator=torch.Generator().manual_seed(0))
        mask = torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.15
        starts = torch.ones(shape[0], 1, dtype=torch.bool)
        configs = {kind: configuration(kind, segment, vocabulary, 0, repeats) for kind in KINDS}
        engines = {kind: build_engine(config, Layout.of(config, 0), device) for kind, config in configs.items()}
        taken: dict[str, list[float]] = {kind: [] for kind in KINDS}
        try:
            for number in range(1, repeats + 3):
                step = StepInput(number, starts, tokens, tokens, mask, int(mask.sum()))
                for kind, engine in engines.items():
                    began = time.process_time()
                    engine.train_step(step, 1e-3)
                    taken[kind].append(1e3 * (time.process_time() - began))
        finally:
            for engine in engines.values():
                engine.close()
        cells += [
            {"kind": kind, "segment": segment, "milliseconds": statistics.median(found[2:])}
            for kind, found in taken.items()
        ]
    return cells


def table(cells: list[Cell]) -> str:
    """Markdown: a row for each kind; means over seeds with their range in brackets, and milliseconds of a step."""
    timed = [cell for cell in cells if "milliseconds" in cell]
    lengths = sorted({cell["segment"] for cell in timed})
    head = ["encoder", "accuracy", "bits per masked token", "seeds", "parameters", "width of the FFN"]
    rows = [[*head, *(f"ms a step, N = {length}" for length in lengths)]]
    for kind, label in KINDS.items():
        found = [cell for cell in cells if cell["kind"] == kind and "accuracy" in cell]
        row = [label, *(_shown([cell[name] for cell in found]) for name in ("accuracy", "bits_per_token"))]
        row += [str(len(found)), *(str(found[0][name]) for name in ("parameters", "mlp_width"))]
        for length in lengths:
            of_length = [c["milliseconds"] for c in timed if (c["kind"], c["segment"]) == (kind, length)]
            row.append(f"{of_length[0]:.0f}")
        rows.append(row)
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def _shown(values: list[float]) -> str:
    return f"{statistics.fmean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def datasets(out: Path) -> tuple[Path, Path]:
    """Folders of the training and the held-out dataset; built if they are not there."""
    from benchmarks.datasets import built
    from pipelines.corpora import fetch_books

    corpus = out / "corpus"
    fetch_books(corpus)
    train, validation = (built([corpus / part], "bytes", out / "data" / part) for part in ("train", "validation"))
    return train, validation


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("build/masked"))
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds (0, 1, ...) for each")
    parser.add_argument("--steps", type=int, default=500, help=f"training steps, of {TOKENS} tokens each")
    parser.add_argument("--times", action="store_true", help="measure steps instead; the machine should be idle")
    parser.add_argument("--repeats", type=int, default=10, help="timed steps")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["PYTHONWARNINGS"] = "ignore"
    import torch

    from brt_dist.parallel.layout import single_process

    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "masked.json"
    cells: list[Cell] = json.loads(file.read_text()) if file.exists() else []
    with single_process() as device:
        if options.times:
            cells = [cell for cell in cells if "milliseconds" not in cell] + times(257, options.repeats, device)
            write_atomic(file, json.dumps(cells, indent=1) + "\n")
        else:
            folders = datasets(options.out)
            for seed in range(options.seeds):
                for kind, label in KINDS.items():
                    key = {"kind": kind, "seed": seed, "steps": options.steps}
                    if not any(key.items() <= cell.items() for cell in cells):
                        cells.append(trained(kind, seed, options.steps, options.out, folders, device))
                        write_atomic(file, json.dumps(cells, indent=1) + "\n")
                        print(f"{label}, seed {seed}: accuracy {cells[-1]['accuracy']:.3f}", flush=True)
    if any("accuracy" in cell for cell in cells):
        print(table(cells))
    return 0


if __name__ == "__main__":
    sys.exit(main())
