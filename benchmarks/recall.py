"""A task that only memory can solve: a key is shown once, and asked for again many windows later.

Each document begins with a key, one of KEYS tokens, at a random place of its first window; the rest is noise.  In
every later window one token asks for the key.  The answer is never in the input, so a key that is not carried is lost:
a sliding window of L layers sees at most L*W tokens back, and can only guess (1/KEYS) what was shown before that.

Documents are longer than a segment and of different lengths, so they start anywhere in a segment, and no gradient runs
from a late question to the key.  Training uses the library's stream schedule, reader and engine.

`python -m benchmarks.recall` trains one model of each kind and prints the accuracy by distance, in documents several
times as long as those it was trained on.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.questions import Drawn, asked, in_tokens, positions, train_on
from brt_dist.config.schema import Config, ModelConfig
from brt_dist.data.reader import Segments
from brt_dist.data.stream_schedule import StepReads
from brt_dist.model.model import BlockRecurrentModel
from brt_dist.parallel.device import Device

KEYS, NOISE = 8, 4
ASK = KEYS + NOISE  # the token that asks
VOCAB = ASK + 1
WINDOW = 4
Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Size:
    """windows: shortest and longest document.  segment: in windows.  streams: rows of a step."""

    windows: tuple[int, int] = (10, 15)
    segment: int = 5
    streams: int = 32
    layers: int = 1
    width: int = 32
    steps: int = 400
    learning_rate: float = 1e-2


class Documents(Drawn):
    """`count` documents, drawn from `seed`."""

    def __init__(self, size: Size, count: int, seed: Sequence[int]) -> None:
        random = np.random.default_rng(seed)
        shortest, longest = size.windows
        shape = (count, longest, WINDOW)
        self.lengths = random.integers(shortest, longest + 1, count) * WINDOW
        self.key = random.integers(KEYS, size=count)
        tokens = random.integers(KEYS, KEYS + NOISE, shape)
        np.put_along_axis(tokens, random.integers(WINDOW, size=(*shape[:2], 1)), ASK, 2)
        tokens[:, 0] = random.integers(KEYS, KEYS + NOISE, (count, WINDOW))
        tokens[np.arange(count), 0, random.integers(WINDOW, size=count)] = self.key
        self._tokens = tokens.reshape(count, -1)

    def answers(self, plan: StepReads, segments: Segments) -> tuple[Int64Array, npt.NDArray[np.bool_]]:
        """Target (b, N) and mask (b, N): the key, where it is asked for, instead of the next token."""
        window = segments.input.shape[1] // plan.document.shape[1]
        is_asked = (segments.input == ASK) & (in_tokens(plan.length, window) > 0)
        return in_tokens(self.key[plan.document], window), is_asked

    def distance(self, plan: StepReads, segments: Segments) -> Int64Array:
        """Windows since the first one, which showed the key (b, N)."""
        return positions(plan, segments.input.shape[1] // plan.document.shape[1]) // WINDOW


@dataclass
class Recall:
    """Right answers by distance: entry i for i windows after the key.

    last: documents whose last question was answered right.  Documents are independent; questions about one are not.
    """

    right: Int64Array
    asked: Int64Array
    last: int
    documents: int

    def accuracy(self, first: int, end: int | None = None) -> float:
        """Share of right answers at distances from `first` windows on, below `end` if it is given."""
        return float(self.right[first:end].sum() / self.asked[first:end].sum())


def configuration(size: Size, seed: int, **model: Any) -> Config:
    """The run; `model` are further settings of the model."""
    window = model.get("window", WINDOW)
    shape = {
        "layers": size.layers, "width": size.width, "heads": 2, "head_dim": size.width // 2, "mlp_width": size.width,
        "vocab_size": VOCAB, "window": window, "states": 4, "recurrent_layers": (0,), "dropout": 0.0,
    }  # fmt: skip
    return Config.model_validate(
        {
            "model": shape | model,
            "data": {"dataset": "none", "segment": size.segment * WINDOW, "streams": size.streams},
            "parallel": {"micro_batch": size.streams, "zero_stage": 0},
            "optimizer": {"learning_rate": size.learning_rate, "warmup_steps": 20, "clip_norm": 1.0},
            "run": {"directory": "none", "steps": size.steps, "precision": "fp32", "seed": seed, "device": "cpu"},
        }
    )


def train(config: Config, size: Size, device: Device) -> tuple[BlockRecurrentModel, list[float]]:
    """Train on documents that come only once; the model, and the loss of each step in nats per question."""
    count = documents_for(config, size.windows[0])
    return train_on(config, Documents(size, count, (config.run.seed, 0)), device)


def documents_for(config: Config, shortest: int) -> int:
    """More documents of at least `shortest` windows of WINDOW tokens than the run gets to."""
    windows = config.data.segment // WINDOW * config.run.steps
    return config.data.streams * (2 + windows // shortest)


def recall(model: BlockRecurrentModel, config: Config, size: Size, count: int = 256) -> Recall:
    """Ask the model about `count` documents that it was not trained on."""
    documents = Documents(size, count, (config.run.seed, 1))
    window, longest = config.model.window, size.windows[1]
    found = Recall(np.zeros(longest, np.int64), np.zeros(longest, np.int64), last=0, documents=count)
    for step in asked(model, config, documents):
        distance = documents.distance(step.plan, step.segments)
        np.add.at(found.asked, distance[step.mask], 1)
        np.add.at(found.right, distance[step.mask], step.right[step.mask])
        in_last = distance == in_tokens(documents.lengths[step.plan.document], window) // WINDOW - 1
        found.last += int((step.right & in_last).sum())
    return found


def without_recurrence(config: ModelConfig, **model: Any) -> dict[str, Any]:
    """Settings of a model without a state and with as many parameters as `config`, in a wider MLP."""
    from benchmarks.models import mlp_width, parameter_count, with_parameters

    plain = config.changed({"mixers.recurrent.layers": (), **model})
    return {"recurrent_layers": (), "mlp_width": mlp_width(with_parameters(plain, parameter_count(config)))} | model


CELLS: dict[str, dict[str, Any]] = {
    f"{gate}:{cell}": {"gate": gate, "cell": cell} for gate in ("fixed", "lstm") for cell in ("skip", "single", "dual")
}
OTHERS = ("state cleared", "sliding window", "XL")


def settings(kind: str, size: Size) -> dict[str, Any]:
    """Settings of the model of that kind; those without a state have the size of `fixed:skip`."""
    reference = configuration(size, 0).model
    if kind in CELLS:
        return CELLS[kind]
    return {
        "state cleared": lambda: {"clear_state": True},
        "sliding window": lambda: without_recurrence(reference),
        "XL": lambda: without_recurrence(reference, window=size.segment * WINDOW),
    }[kind]()


def main() -> None:
    from benchmarks.models import parameter_count
    from brt_dist.parallel.layout import single_process

    kinds = [*CELLS, *OTHERS]
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--windows", type=int, nargs=2, default=(10, 15), help="shortest and longest training document")
    parser.add_argument(
        "--asked", type=int, nargs=2, default=(65, 70), help="the same for the documents with questions"
    )
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=kinds, choices=kinds, metavar="KIND", help=", ".join(kinds))
    options = parser.parse_args()
    torch.set_num_threads(1)
    size = Size(windows=tuple(options.windows), steps=options.steps, layers=options.layers)
    longer = replace(size, windows=tuple(options.asked))
    shown = [1, 2, 4, 8, 16, 32, 64]
    print(f"right answers; chance {1 / KEYS:.3f}; {size.steps} steps, {size.layers} layers, seed {options.seed}")
    print("| windows since the key | " + " | ".join(map(str, shown)) + " | parameters | seconds |")
    print("|" + "---|" * (len(shown) + 3))
    with single_process() as device:
        for kind in options.only:
            began = time.perf_counter()
            config = configuration(size, options.seed, **settings(kind, size))
            model, _ = train(config, size, device)
            found = recall(model, config, longer)
            shares = [f"{found.accuracy(i, i + 1):.2f}" if i < longer.windows[1] else "" for i in shown]
            row = [kind, *shares, str(parameter_count(config.model)), f"{time.perf_counter() - began:.0f}"]
            print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
