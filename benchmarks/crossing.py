"""At which budget does a recurrent state pay off?  Models of equal size on bytes of code, measured as they learn.

`python -m benchmarks.crossing --out build/crossing` trains a recurrent model, a sliding window and Transformer-XL with
twice the window, with equal parameters and on equal bytes, to growing budgets: all models to the first budget, then all
to the second, ...  At each it reads whole held-out documents, with memory carried, and with state or cache cleared at
every segment.  It prints a table, and writes OUT/crossing.json after each measurement.  Run it again to continue.

The corpus is this environment's Python packages, a document per folder (`brt data corpus code --per folder`), as bytes.
"""

import argparse
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.crossing_plot import draw
from benchmarks.crossing_report import Cell, tables
from benchmarks.figures import shows
from benchmarks.models import mlp_width, parameter_count, train_run, with_parameters
from brt_dist.config.loading import load
from brt_dist.config.schema import Config
from brt_dist.data.dataset import Dataset
from brt_dist.evaluation.forgetting import MemoryUse, parts_of
from brt_dist.evaluation.score import score
from brt_dist.files import write_atomic
from brt_dist.model.model import BlockRecurrentModel
from brt_dist.parallel.device import Device

SETTINGS = Path(__file__).with_name("crossing.yaml")
LONGEST = 40_000  # bytes of a held-out document


def kinds(window: int, head_dim: int) -> dict[str, list[str]]:
    """Settings of each kind.  A step reads the same number of bytes in all of them."""
    sharp = f"={math.sqrt(head_dim)}"
    plain = ["model.mixers.recurrent.layers=[]"]
    streams = 16 * 256 // (2 * window)
    wide = [  # as in the paper, a segment is one window
        *plain, f"model.window={2 * window}", f"data.segment={2 * window}", f"data.streams={streams}",
        f"parallel.micro_batch={streams}",
    ]  # fmt: skip
    return {
        "recurrent": [],
        "recurrent, sharp states": [f"model.mixers.recurrent.query_length{sharp}"],
        "recurrent, sharp": [f"model.mixers.{mixer}.query_length{sharp}" for mixer in ("recurrent", "window")],
        "sliding window": plain,
        "sliding window, sharp": [*plain, f"model.mixers.window.query_length{sharp}"],
        "sliding window x2, sharp": [
            *plain, f"model.window={2 * window}", f"model.mixers.window.query_length{sharp}"
        ],
        "XL, window x2": wide,
        "XL, window x2, sharp": [*wide, f"model.mixers.window.query_length{sharp}"],
    }  # fmt: skip


@dataclass(frozen=True)
class Chosen:
    """Some documents of a dataset."""

    dataset: Dataset
    documents: tuple[int, ...]

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        return np.asarray(self.dataset.lengths)[list(self.documents)]

    def length(self, document: int) -> int:
        return self.dataset.length(self.documents[document])

    def tokens(self, document: int, offset: int, count: int) -> npt.NDArray[Any]:
        return self.dataset.tokens(self.documents[document], offset, count)

    def expect(self, documents: Sequence[int]) -> None:
        self.dataset.expect([self.documents[document] for document in documents])


def held_out(dataset: Dataset, count: int) -> Chosen:
    """Documents of up to 40 kB, evenly spaced over the packages."""
    short = np.flatnonzero(np.asarray(dataset.lengths) <= LONGEST)
    places = np.unique(np.linspace(0, len(short) - 1, count).round().astype(int))
    return Chosen(dataset, tuple(int(document) for document in short[places]))


def datasets(out: Path) -> tuple[Dataset, Dataset]:
    """The training and the held-out dataset; built if they are not there."""
    from pipelines.build import BuildSettings, build
    from pipelines.code_corpus import write_code

    corpus, data = out / "corpus", out / "data"
    if not corpus.exists():
        write_code(corpus, per="folder")
    parts = [data / name for name in ("train", "validation")]
    for part in parts:
        if not part.exists():
            build(BuildSettings((str(corpus / part.name),), "bytes", shard_size=1 << 26), part, workers=0)
    train, validation = (Dataset.open(part) for part in parts)
    return train, validation


def configuration(kind: str, seed: int, steps: int, options: argparse.Namespace) -> Config:
    """A run to a budget, with the parameters of the recurrent model."""
    window = options.window
    name = "-".join([*kind.replace(",", "").split(), str(window), str(seed), *options.set])
    given = [
        f"data.dataset={options.out / 'data' / 'train'}",
        f"data.validation={options.out / 'data' / 'validation'}",
        f"run.directory={options.out / 'runs' / name}",
        f"run.steps={steps}", f"run.seed={seed}", f"model.window={window}", f"model.mixers.recurrent.states={window}",
        *options.set,
    ]  # fmt: skip
    reference = load(SETTINGS, given).config
    config = load(SETTINGS, [*given, *kinds(window, reference.model.head_dim)[kind]]).config
    return config.model_copy(update={"model": with_parameters(config.model, parameter_count(reference.model))})


def measure(model: BlockRecurrentModel, config: Config, documents: Chosen) -> dict[str, Any]:
    """Read all documents: with memory carried, and with each part of it cleared."""
    uses: list[MemoryUse] = ["carried"]
    for part in parts_of(config.model):
        uses.append("state cleared" if part == "state" else "cache cleared")
    segment = max(config.data.segment, 64)  # all kinds are cleared equally often, or XL would lose more
    found: dict[str, Any] = {}
    for use in uses:
        read = score(model, documents, segment=segment, streams=8, memory_use=use, watch=use == "carried")
        found[use] = read.bits_per_token
        if use == "carried":
            found["document_bits"] = (read.document_nats / math.log(2)).tolist()
            found["document_bytes"] = read.document_tokens.tolist()
            found["positions"] = [[p.begin, p.tokens, p.loss / math.log(2)] for p in read.positions]
            found["layers"] = {
                f"{layer.layer}": dict(sorted(layer.values.items())) for layer in read.layers if layer.values
            }
    return found


def trained_cell(key: Cell, options: argparse.Namespace, data: tuple[Dataset, Chosen], device: Device) -> Cell:
    """Train to a budget, from the last one on, and measure."""
    began = time.perf_counter()
    train, documents = data
    config = configuration(key["kind"], key["seed"], key["steps"], options)
    model, tokens = train_run(config, train, documents.dataset, device)
    size = {"parameters": parameter_count(config.model), "mlp_width": mlp_width(config.model), "bytes": tokens}
    return key | size | measure(model, config, documents) | {"seconds": round(time.perf_counter() - began, 1)}


def main() -> None:
    from brt_dist.parallel.layout import single_process

    names = list(kinds(16, 16))
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("build/crossing"))
    parser.add_argument("--window", type=int, default=16, help="in bytes; also the number of states")
    parser.add_argument("--budgets", type=int, nargs="*", default=[250, 500, 1000, 2000, 4000, 8000], metavar="STEPS")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--only", nargs="*", default=names, choices=names, metavar="KIND", help=", ".join(names))
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings for all kinds")
    parser.add_argument("--documents", type=int, default=16, help="held-out documents to read")
    parser.add_argument("--show", type=Path, metavar="FILE", help="only print and plot the results in such a file")
    options = parser.parse_args()
    if shows(parser, options, tables):
        draw(json.loads(options.show.read_text()), options.show.with_suffix(".png"))
        return
    torch.set_num_threads(1)
    train, validation = datasets(options.out)
    documents = held_out(validation, options.documents)
    file = options.out / "crossing.json"
    cells: list[Cell] = json.loads(file.read_text()) if file.exists() else []
    with single_process() as device:
        for steps in options.budgets:
            for seed in options.seeds:
                for kind in options.only:
                    key = {"kind": kind, "window": options.window, "set": options.set, "seed": seed, "steps": steps}
                    if any(key.items() <= cell.items() for cell in cells):
                        continue
                    cells.append(trained_cell(key, options, (train, documents), device))
                    write_atomic(file, json.dumps(cells, indent=1) + "\n")
                    print(f"{kind}, seed {seed}, {steps} steps: {cells[-1]['carried']:.4f} bits/byte", flush=True)
    print(tables(cells))


if __name__ == "__main__":
    main()
