"""Recurrent against sliding window against Transformer-XL on books, at equal parameters and equal tokens.

`python -m benchmarks.books --out build/books` downloads the books, builds a dataset from them, trains each kind of
model for each seed in this process with the engine and loop of `brt train`, and measures bits per token of the held-out
books by position in the book.  It prints a table and writes OUT/books.json and OUT/books.png.  Run it again to resume
from the last checkpoints; models that are already trained are only measured.
"""

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.books_report import draw, table
from benchmarks.positions import Profile, profile
from brt_dist.data.dataset import Dataset
from brt_dist.evaluation.positions import doubling
from brt_dist.files import write_atomic
from pipelines.build import BuildSettings, build
from pipelines.corpora import fetch_books

SETTINGS = Path(__file__).with_name("books.yaml")
TOKENIZER = "bpe:1024"
# A step reads the same number of tokens in all of them.  The models without a state get a wider MLP in return.
KINDS: dict[str, list[str]] = {
    "recurrent": [],
    "sliding window": ["model.mixers.recurrent.layers=[]"],
    # of twice the window, and as in the paper a segment is one window
    "XL, window x2": [
        "model.mixers.recurrent.layers=[]",
        "model.window=64",
        "data.segment=64",
        "data.streams=16",
        "parallel.micro_batch=16",
    ],
}


@dataclass(frozen=True)
class Result:
    """One trained model, measured on the held-out books."""

    kind: str
    seed: int
    parameters: int
    mlp_width: int
    steps: int
    tokens: int
    seconds: float
    profile: Profile

    def to_json(self) -> dict[str, Any]:
        found = self.profile
        return {
            "kind": self.kind,
            "seed": self.seed,
            "parameters": self.parameters,
            "mlp_width": self.mlp_width,
            "steps": self.steps,
            "training_tokens": self.tokens,
            "seconds": round(self.seconds, 1),
            "bits_per_token": found.mean,
            "by_position": found.by_bin.tolist(),
            "by_book": found.by_document.tolist(),
            "held_out_tokens": found.tokens.sum(0).tolist(),
        }


def datasets(out: Path) -> tuple[Path, Path]:
    """Folders of the training and the held-out dataset; built if they are not there."""
    corpus, train, validation = out / "corpus", out / "data" / "train", out / "data" / "validation"
    print(fetch_books(corpus).origin, flush=True)
    build(BuildSettings((str(corpus / "train"),), TOKENIZER, shard_size=1 << 20), train, workers=0)
    tokenizer = str(train / "tokenizer.json")
    build(BuildSettings((str(corpus / "validation"),), tokenizer, shard_size=1 << 20), validation, workers=0)
    return train, validation


def run_kind(kind: str, seed: int, options: argparse.Namespace, folders: tuple[Path, Path], device: Any) -> Result:
    """Train one model, or go on with it, and measure it."""
    from benchmarks.models import mlp_width, parameter_count, train_run, with_parameters
    from brt_dist.config.loading import load

    began = time.perf_counter()
    run = options.out / f"{kind.replace(',', '').replace(' ', '-')}-{seed}"
    train, validation = (Dataset.open(folder) for folder in folders)
    given = [
        f"data.dataset={folders[0]}",
        f"data.validation={folders[1]}",
        f"run.directory={run}",
        f"run.steps={options.steps}",
        f"run.seed={seed}",
        f"model.vocab_size={train.vocab_size}",
    ]
    target = parameter_count(load(SETTINGS, given).config.model)
    config = load(SETTINGS, [*given, *KINDS[kind]]).config
    config = config.model_copy(update={"model": with_parameters(config.model, target)})
    model, tokens = train_run(config, train, validation, device)
    found = profile(model, config, validation, doubling(32, int(validation.lengths.max())))
    seconds = time.perf_counter() - began
    size = parameter_count(config.model)
    return Result(kind, seed, size, mlp_width(config.model), options.steps, tokens, seconds, found)


def main() -> None:
    from brt_dist.parallel.layout import single_process

    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("build/books"))
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1])
    parser.add_argument("--only", nargs="*", default=list(KINDS), choices=list(KINDS), metavar="KIND")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    folders = datasets(options.out)
    results: list[Result] = []
    with single_process() as device:
        for seed in options.seeds:
            for kind in options.only:
                results.append(run_kind(kind, seed, options, folders, device))
                found = [result.to_json() for result in results]
                edges = list(results[0].profile.edges)
                write_atomic(options.out / "books.json", json.dumps({"edges": edges, "runs": found}, indent=1) + "\n")
                print(f"{kind}, seed {seed}: {results[-1].profile.mean:.3f} bits/token, {results[-1].seconds:.0f} s")
                print(table(edges, found), flush=True)
                draw(edges, found, options.out / "books.png")


if __name__ == "__main__":
    main()
