"""Every causal kind of mixer, and hybrids of two, at equal parameters and equal tokens, on tasks and on text.

`python -m benchmarks.mixers --out build/mixers` trains a model for each kind, task and seed (a cell), on one CPU:

* recall: a key that is shown once (benchmarks/recall.py), asked for 8 and more windows later;
* multi-query and last write: pairs of key and value (benchmarks/pairs.py);
* copy: a sequence, and the same again (benchmarks/copies.py);
* text: bytes of `brt data corpus books`, or of code of this environment's packages (--text code), with bits per byte
  of held-out text by position in the document, and memory.

It prints a table, and writes OUT/mixers.json and OUT/mixers.png after each cell.  Run it again to continue: cells that
are in the file with the same steps are not trained again, and text resumes from its last checkpoint.  Each kind has its
own process, and so its own memory.  --times STEPS measures steps on text instead, which take turns, on an
idle machine.  --quick is a run of a few minutes that only checks that everything works.
"""

import argparse
import json
import os
import statistics
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.cells import Cell, Cells
from benchmarks.mixers_report import draw, table

if TYPE_CHECKING:
    from brt_dist.config.schema import Config
    from brt_dist.parallel.device import Device

TASKS = ("text", "recall", "multi-query", "last write", "copy")  # text first: the peak of memory is then its own
REFERENCE = "recurrent"  # all kinds get its number of parameters
RECURRENT = {"states": 8}
CODE_BYTES = 8 << 20  # of training text; a small model does not get through more
HELD_OUT_BYTES, LONGEST = 240_000, 40_000  # of held-out code, and of one document of it
_PLAIN = ("window", "linear", "delta", "gated_delta", "memsizer", "nprf_rpe", "fourier_memory", "lstm")
KINDS = (*_PLAIN, "switchhead", "recurrent", "bst", "delta, window", "linear, recurrent", "linear, window")


def mixers(kind: str, layers: int) -> dict[str, Any]:
    """`model.mixers` of a kind: of all layers, or of the last but one where a state is combined with other layers."""
    one = {"layers": [layers - 2]}
    return {
        **{name: {name: {}} for name in _PLAIN},
        "switchhead": {"switchhead": {"experts": 2}},  # with more, it alone has more parameters than the others
        "recurrent": {"window": {}, "recurrent": RECURRENT | one},
        "bst": {"window": {}, "bst": one},
        "delta, window": {"window": {}, "delta": {"layers": list(range(0, layers, 2))}},
        "linear, recurrent": {"linear": {}, "recurrent": RECURRENT | one},
        "linear, window": {"window": {}, "linear": {"layers": list(range(1, layers, 2))}},
    }[kind]


def configuration(kind: str, layers: int, width: int, vocabulary: int, seed: int, steps: int, **data: Any) -> "Config":
    """A run of a kind, with as many parameters as the reference, by the width of the FFN.

    Args:
        data: segment, streams, window, learning_rate; for text also dataset, validation and directory.
    """
    from benchmarks.models import cpu_run, parameter_count, with_parameters

    def of(kind: str) -> "Config":
        return cpu_run(mixers(kind, layers), layers, width, vocabulary, seed, steps, **data)

    config, count = of(kind), parameter_count(of(REFERENCE).model)
    return config.model_copy(update={"model": with_parameters(config.model, count)})


def text_configuration(kind: str, vocabulary: int, seed: int, steps: int, **places: Any) -> "Config":
    """A run on text; places: dataset, validation and directory."""
    sizes = {"segment": 128, "streams": 8, "window": 32, "learning_rate": 3e-3}
    return configuration(kind, 4, 64, vocabulary, seed, steps, **sizes, **places)


def key_of(kind: str, task: str, seed: int, options: argparse.Namespace) -> Cell:
    """What a cell is: cells that differ in any of this are different."""
    steps = options.text_steps if task == "text" else options.steps
    return {"kind": kind, "task": task if task != "text" else f"text: {options.text}", "seed": seed, "steps": steps}


def trained_cell(key: Cell, device: "Device", options: argparse.Namespace, folders: tuple[Path, Path]) -> Cell:
    """Train and measure a cell."""
    began = time.perf_counter()
    found = on_text(key, options, folders, device) if key["task"].startswith("text") else on_task(key, options, device)
    return key | found | {"seconds": round(time.perf_counter() - began, 1)}


def on_task(key: Cell, options: argparse.Namespace, device: "Device") -> Cell:
    from benchmarks import copies, pairs, recall
    from benchmarks.models import mlp_width, parameter_count
    from benchmarks.questions import Questions, tally, train_on

    windows, longer = (10, 15), (20, 25)
    seed, task = key["seed"], key["task"]
    vocabulary = {"recall": recall.VOCAB, "copy": copies.VOCAB}.get(task, pairs.VOCAB)
    config = configuration(
        key["kind"], 2, 32, vocabulary, seed, key["steps"], segment=5 * 4, streams=32, window=4, learning_rate=1e-2
    )

    if task == "recall":
        size, count = recall.Size(windows=windows), recall.documents_for(config, windows[0])
        model, losses = train_on(config, recall.Documents(size, count, (seed, 0)), device)
        accuracy = recall.recall(model, config, recall.Size(windows=longer), options.asked).accuracy(8)
    else:
        trained: Questions
        if task == "copy":
            trained = copies.Copies(copies.TRAINED, recall.documents_for(config, copies.SHORTEST), (seed, 0))
            asked: Questions = copies.Copies(copies.ASKED, options.asked, (seed, 1))
        else:
            trained = pairs.Pairs(task, windows, recall.documents_for(config, windows[0]), (seed, 0))
            asked = pairs.Pairs(task, longer, options.asked, (seed, 1))
        model, losses = train_on(config, trained, device)
        found = tally(model, config, asked, (0,))
        accuracy = float(found.right.sum() / found.asked.sum())
    size_of = {"parameters": parameter_count(config.model), "mlp_width": mlp_width(config.model)}
    return size_of | {"accuracy": accuracy, "loss": losses[-1]}


def on_text(key: Cell, options: argparse.Namespace, folders: tuple[Path, Path], device: "Device") -> Cell:
    from benchmarks.models import mlp_width, parameter_count, train_run
    from benchmarks.positions import profile
    from brt_dist.data.dataset import Dataset
    from brt_dist.evaluation.positions import doubling

    train, validation = (Dataset.open(folder) for folder in folders)
    name = f"{key['kind'].replace(', ', '-')}-{options.text}-{key['seed']}-{key['steps']}"
    config = text_configuration(
        key["kind"], train.vocab_size, key["seed"], key["steps"],
        dataset=folders[0], validation=folders[1], directory=options.out / "runs" / name,
    )  # fmt: skip
    model, tokens = train_run(config, train, validation, device)
    peak = device.peak_memory_bytes()
    found = profile(model, config, validation, doubling(32, int(validation.lengths.max())))
    shown = found.tokens.sum(0) > 0
    return {
        "parameters": parameter_count(config.model),
        "mlp_width": mlp_width(config.model),
        "training_tokens": tokens,
        "peak_bytes": peak,
        "memory_bytes": sum(
            field.local_bytes(1, False, 4)
            for layer in range(config.model.layers)
            for field in config.model.mixer_of(layer).memory(config.model)
        ),
        "bits_per_token": found.mean,
        "edges": [edge for edge, is_shown in zip(found.edges, shown, strict=True) if is_shown],
        "by_position": found.by_bin[shown].tolist(),
    }


def times(kinds: list[str], steps: int, device: "Device") -> list[Cell]:
    """Bytes a CPU second of training on text, forward to update: a cell for each kind; steps take turns."""
    import torch

    from brt_dist.parallel.engine import build_engine
    from brt_dist.parallel.layout import Layout
    from brt_dist.parallel.micro_batches import StepInput

    configs = {kind: text_configuration(kind, 256, 0, steps) for kind in kinds}
    engines = {kind: build_engine(config, Layout.of(config, 0), device) for kind, config in configs.items()}
    given, taken = configs[kinds[0]], dict[str, list[float]]()
    shape, blocks = (given.data.streams, given.data.segment), given.data.segment // given.model.window
    tokens = torch.randint(256, shape, generator=torch.Generator().manual_seed(0))
    mask, starts = torch.ones(shape, dtype=torch.bool), torch.zeros(shape[0], blocks, dtype=torch.bool)
    for number in range(1, steps + 3):
        for kind, engine in engines.items():
            began = time.process_time()
            engine.train_step(StepInput(number, starts, tokens, tokens, mask, tokens.numel()), 1e-3)
            taken.setdefault(kind, []).append(time.process_time() - began)
    for engine in engines.values():
        engine.close()
    rates = {kind: tokens.numel() / statistics.median(found[2:]) for kind, found in taken.items()}
    return [{"kind": kind, "task": "time", "bytes_per_second": rate} for kind, rate in rates.items()]


def datasets(options: argparse.Namespace) -> tuple[Path, Path]:
    """Folders of the training and the held-out dataset, in bytes; built if they are not there."""
    from benchmarks.datasets import built
    from benchmarks.ladder_texts import chosen
    from pipelines.code_corpus import write_code
    from pipelines.corpora import fetch_books

    corpus, data = options.out / f"corpus-{options.text}", options.out / f"data-{options.text}"
    train, validation = corpus / "train", corpus / "validation"
    if options.text == "books":
        fetch_books(corpus)
        sources = [train], [validation]
    else:
        if not corpus.exists():
            write_code(corpus, per="folder")
        sources = chosen(train, CODE_BYTES), chosen(validation, HELD_OUT_BYTES, LONGEST)
    one, other = (built(of, "bytes", data / part.name) for of, part in zip(sources, (train, validation), strict=True))
    return one, other


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("build/mixers"))
    parser.add_argument("--only", nargs="*", default=list(KINDS), choices=KINDS, metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--tasks", nargs="*", default=list(TASKS), choices=TASKS, metavar="TASK", help=", ".join(TASKS))
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds (0, 1, ...) for each")
    parser.add_argument("--steps", type=int, default=600, help="training steps of a task, of 640 tokens each")
    parser.add_argument("--text-steps", type=int, default=2000, help="training steps of text, of 1024 bytes each")
    parser.add_argument("--text", choices=("books", "code"), default="books", help="which text")
    parser.add_argument("--asked", type=int, default=256, help="documents with questions")
    parser.add_argument("--times", type=int, default=0, metavar="STEPS", help="measure this many steps of each instead")
    parser.add_argument("--show", type=Path, metavar="FILE", help="only print such a file's table, and draw FILE.png")
    parser.add_argument(
        "--quick", action="store_true", help="one seed and few steps: only checks that everything works"
    )
    options = parser.parse_args()
    if options.show:
        found = json.loads(options.show.read_text())
        print(table(found))
        draw(found, options.show.with_suffix(".png"))
        return 0
    if options.quick:
        options.seeds, options.steps, options.text_steps, options.asked = 1, 20, 8, 64
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["PYTHONWARNINGS"] = "ignore"
    options.out.mkdir(parents=True, exist_ok=True)
    cells = Cells(options.out / "mixers.json")
    if options.times:
        from brt_dist.parallel.layout import single_process

        with single_process() as device:
            cells.replace("time", times(options.only, options.times, device))
        print(table(cells.cells))
        return 0
    folders = datasets(options) if "text" in options.tasks else (Path(), Path())
    wanted = [
        [key_of(kind, task, seed, options) for task in TASKS if task in options.tasks]
        for seed in range(options.seeds)
        for kind in options.only
    ]
    for keys in wanted:
        for cell in cells.complete(keys, partial(trained_cell, options=options, folders=folders)):
            print(f"{cell['kind']}, {cell['task']}, seed {cell['seed']}: {cell['seconds']} s", flush=True)
    every = [key for keys in wanted for key in keys]
    shown = [found for key in every if (found := cells.find(key))]
    print(table(shown))
    draw(shown, options.out / "mixers.png")
    if len(shown) < len(every):
        print(f"{len(every) - len(shown)} of {len(every)} cells failed; run it again to retry them", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
