"""The rungs of `benchmarks.ladder`: what each asks of memory, at which sizes, and how a model of it is trained."""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.cells import Cell
from benchmarks.ladder_texts import FACTS_WINDOW, FAR, NEAR, folder_of

if TYPE_CHECKING:
    from benchmarks.questions import Questions
    from brt_dist.config.schema import Config
    from brt_dist.parallel.device import Device

REFERENCE = "recurrent"  # all kinds get its number of parameters, and in the second comparison its time
KINDS: dict[str, int | None] = {  # windows of the reference that a window has; None: the reference itself
    REFERENCE: None,
    "sliding window": 1,
    "XL, window x2": 2,
    "XL, window x4": 4,
}


@dataclass(frozen=True)
class Size:
    """A model and its training.

    Attributes:
        layers, width, window, states, segment, streams: of the recurrent model, which is fixed:skip.
        steps: of `segment * streams` tokens.
        rate: where the search begins; a learning rate is 10^(rate / 2).
        query_length: of all kinds, at the start; 4 makes heads of size 16 as sharp as a Transformer's (docs/state.md).
    """

    layers: int
    width: int
    window: int
    states: int
    segment: int
    streams: int
    steps: int
    rate: int
    query_length: float = 1.0


@dataclass(frozen=True)
class Rung:
    """A rung.

    Attributes:
        unit: what a bit is counted for.
        chance: share of right answers of one who can only guess; None: nothing is asked.
        far: first distance (windows of the task) or position (tokens of text) that counts as far.  XL, window x4 does
            not see 16 windows; of last write few answers are as old.
        sizes: by scale.
    """

    unit: str
    chance: float | None
    far: int
    sizes: dict[str, Size]

    @property
    def asks(self) -> bool:
        return self.chance is not None


def _sizes(tiny: Size, small: Size) -> dict[str, Size]:
    return {"quick": replace(tiny, steps=8), "tiny": tiny, "small": small}


def _task(steps: int) -> dict[str, Size]:
    return _sizes(
        Size(layers=2, width=32, window=4, states=8, segment=20, streams=32, steps=steps, rate=-4),
        Size(layers=4, width=64, window=4, states=16, segment=20, streams=64, steps=4 * steps, rate=-5),
    )


_FACTS = _sizes(
    Size(layers=2, width=32, window=32, states=8, segment=128, streams=32, steps=1500, rate=-4, query_length=4.0),
    Size(layers=4, width=64, window=32, states=32, segment=256, streams=32, steps=6000, rate=-5, query_length=4.0),
)
_CODE = _sizes(
    Size(layers=4, width=64, window=16, states=16, segment=128, streams=32, steps=500, rate=-3, query_length=4.0),
    Size(layers=4, width=128, window=32, states=32, segment=256, streams=32, steps=4000, rate=-5, query_length=4.0),
)
_BOOKS = {scale: replace(size, steps=size.steps // 2) for scale, size in _CODE.items()}  # 38 of them
RUNGS: dict[str, Rung] = {
    "recall": Rung("answer", 1 / 8, 16, _task(600)),
    "multi-query": Rung("answer", 1 / 8, 16, _task(1500)),
    "last write": Rung("answer", 1 / 8, 8, _task(1500)),
    "facts": Rung("digit", 1 / 10, 16, _FACTS),
    "books, bytes": Rung("byte", None, 2048, _BOOKS),
    "books": Rung("token", None, 2048, _BOOKS),
    "code, bytes": Rung("byte", None, 2048, _CODE),
    "code": Rung("token", None, 2048, _CODE),
}
TRAINED_ON, ASKED_IN = (10, 15), (65, 70)  # windows of the documents of tasks
TASK_EDGES = (0, 1, 2, 4, 8, 16, 32, 64)


def learning_rate(half_decades: int) -> float:
    """10^(half_decades / 2), to three digits."""
    return float(f"{10 ** (half_decades / 2):.3g}")


def configuration(kind: str, size: Size, vocabulary: int, key: Cell, **places: Any) -> "Config":
    """A run of a kind, with as many parameters as the reference and as many tokens in a step.

    Args:
        kind: one of KINDS.
        size: of the reference.
        vocabulary: its size.
        key: `seed`, `steps` and `rate`.
        places: of text: dataset, validation and directory.
    """
    from benchmarks.models import cpu_run, parameter_count, with_parameters

    def of(kind: str) -> "Config":
        times = KINDS[kind]
        window = (times or 1) * size.window
        # as in the paper, a segment of Transformer-XL is one window; but where a segment holds whole windows all kinds
        # share it, because a step of more streams alone makes small models learn text faster
        segment = size.segment if size.segment % window == 0 else window
        sharp = {"query_length": size.query_length}
        state = {"recurrent": {"states": size.states, "layers": [-2], **sharp}} if times is None else {}
        return cpu_run(
            {"window": sharp, **state},
            size.layers,
            size.width,
            vocabulary,
            key["seed"],
            key["steps"],
            segment=segment,
            window=window,
            streams=size.streams * size.segment // segment,
            learning_rate=learning_rate(key["rate"]),
            **places,
        )

    config, count = of(kind), parameter_count(of(REFERENCE).model)
    return config.model_copy(update={"model": with_parameters(config.model, count)})


def trained_cell(key: Cell, device: "Device", options: argparse.Namespace) -> Cell:
    """Train and measure a cell."""
    import time

    began = time.process_time()
    found = (_on_questions if RUNGS[key["rung"]].asks else _on_text)(key, device, options)
    return key | found | {"cpu_seconds": round(time.process_time() - began, 1)}


def step_costs(key: Cell, device: "Device", options: argparse.Namespace) -> Cell:
    """CPU seconds of a training step of each kind; the kinds take turns, and of each the median counts."""
    import statistics
    import time

    import torch

    from brt_dist.parallel.engine import build_engine
    from brt_dist.parallel.layout import Layout
    from brt_dist.parallel.micro_batches import StepInput

    size, vocabulary = _size(key), vocabulary_of(key["rung"], options.out)
    engines = {}
    for kind in KINDS:
        config = configuration(kind, size, vocabulary, {"seed": 0, "steps": 100, "rate": size.rate})
        engines[kind] = build_engine(config, Layout.of(config, 0), device)
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for number in range(1, options.timed + 1):
        for kind, engine in engines.items():
            data, model = engine.config.data, engine.config.model
            shape = (data.streams, data.segment)
            tokens = torch.randint(vocabulary, (shape[0], shape[1] + 1))
            starts, mask = torch.zeros(shape[0], shape[1] // model.window, dtype=torch.bool), torch.ones(shape).bool()
            before = time.process_time()
            engine.train_step(StepInput(number, starts, tokens[:, :-1], tokens[:, 1:], mask, mask.numel()), 1e-4)
            seconds[kind].append(time.process_time() - before)
    for engine in engines.values():
        engine.close()
    return key | {"cpu_seconds": {kind: statistics.median(values[1:]) for kind, values in seconds.items()}}


def _on_questions(key: Cell, device: "Device", options: argparse.Namespace) -> Cell:
    from benchmarks.questions import tally, train_on

    config = configuration(key["kind"], _size(key), vocabulary_of(key["rung"], options.out), key)
    training, held_out, edges = _documents(key, config, options)
    model, _ = train_on(config, training, device)
    found = tally(model, config, held_out, edges)
    return _about(config) | {
        "edges": list(found.edges),
        "counts": found.asked.tolist(),
        "right": found.right.tolist(),
        "bits": [round(bits, 3) for bits in found.bits.tolist()],
    }


def _documents(
    key: Cell, config: "Config", options: argparse.Namespace
) -> "tuple[Questions, Questions, tuple[int, ...]]":
    """Those to train on and those that are held out, and the first distance of each bin."""
    from benchmarks import pairs, recall
    from benchmarks.facts import Facts
    from brt_dist.evaluation.positions import doubling

    if (rung := key["rung"]) == "facts":
        folder, window = folder_of(rung, options.out), FACTS_WINDOW
        return Facts(folder / NEAR, "train", window), Facts(folder / FAR, "validation", window), doubling(1, 1000)
    seed, count = key["seed"], recall.documents_for(config, TRAINED_ON[0])

    def draw(windows: tuple[int, int], count: int, number: int) -> "Questions":
        if rung == "recall":
            return recall.Documents(recall.Size(windows=windows), count, (seed, number))
        return pairs.Pairs(rung, windows, count, (seed, number))

    return draw(TRAINED_ON, count, 0), draw(ASKED_IN, options.asked, 1), TASK_EDGES


def _on_text(key: Cell, device: "Device", options: argparse.Namespace) -> Cell:
    from benchmarks.models import train_run
    from benchmarks.positions import profile
    from brt_dist.data.dataset import Dataset
    from brt_dist.evaluation.positions import doubling

    folder = folder_of(key["rung"], options.out)
    train, validation = (Dataset.open(folder / part) for part in ("train", "validation"))
    name = "-".join(str(key[part]).replace(", ", "-").replace(" ", "-") for part in ("kind", "seed", "rate", "steps"))
    places = {"dataset": folder / "train", "validation": folder / "validation"}
    run = options.out / "runs" / folder.name / name
    config = configuration(key["kind"], _size(key), train.vocab_size, key, directory=run, **places)
    model, _ = train_run(config, train, validation, device)
    found = profile(model, config, validation, doubling(64, int(validation.lengths.max())))
    return _about(config) | {
        "edges": list(found.edges),
        "counts": found.tokens.sum(0).astype(int).tolist(),
        "bits": [round(bits, 3) for bits in found.bits.sum(0).tolist()],
        "bits_by_document": [round(bits, 3) for bits in found.bits.sum(1).tolist()],
        "tokens_by_document": found.tokens.sum(1).astype(int).tolist(),
    }


def vocabulary_of(rung: str, out: Path) -> int:
    """Size of the vocabulary of a rung, whose data is there."""
    from benchmarks import facts, pairs, recall
    from brt_dist.data.dataset import Dataset

    known = {"recall": recall.VOCAB, "multi-query": pairs.VOCAB, "last write": pairs.VOCAB, "facts": facts.VOCAB}
    return known[rung] if rung in known else Dataset.open(folder_of(rung, out) / "train").vocab_size


def _size(key: Cell) -> Size:
    return RUNGS[key["rung"]].sizes[key["scale"]]


def _about(config: "Config") -> Cell:
    from benchmarks.models import mlp_width, parameter_count

    return {
        "parameters": parameter_count(config.model),
        "mlp_width": mlp_width(config.model),
        "training_tokens": config.data.streams * config.data.segment * config.run.steps,
    }
