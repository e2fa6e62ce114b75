"""Bounded context-free languages (arXiv 2112.09174): LSTM, Transformer, recurrent cell, and the effect of oracle heads.

`python -m benchmarks.languages --out build/languages` trains one layer of each at equal parameters to predict the next
symbol of words of four languages, three seeds each, on one CPU with one thread, and measures on held-out words:

* legal: the share of predicted symbols that could come next, the metric of the paper;
* state, stack: the share of positions where heads on the hidden state predict the machine's state, and its whole stack.

Heads (brt_dist/model/oracle_heads.py) are trained in three ways: `none`, as probes that pass no gradient to the
network; `latent` and `forced`, as further losses of it.  It writes OUT/languages.json after each model and prints a
table; run it again to continue.
"""

import argparse
import json
import random
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from brt_dist.files import write_atomic
from brt_dist.languages import FIRST, LANGUAGES, Labels, Language, Words, labels, legal_share

if TYPE_CHECKING:
    from torch import Tensor

    from brt_dist.config.schema import ModelConfig

Cell = dict[str, Any]
Heads = Literal["none", "latent", "forced"]
HEADS: tuple[Heads, ...] = ("none", "latent", "forced")
TYPES, DEPTH, LONGEST, SEGMENT = 2, 4, 15, 16
MODELS: dict[str, dict[str, Any]] = {
    "LSTM": {"mixers": {"lstm": {}}, "window": SEGMENT},
    "Transformer": {"mixers": {"window": {}}, "window": SEGMENT},  # sees the whole word
    "recurrent": {"mixers": {"recurrent": {"states": 8, "layers": None}}, "window": 4},  # and the cell alone the rest
}
REFERENCE = "recurrent"  # all models get its number of parameters
BATCH, RATE, CLIP = 32, 5e-3, 0.5


class Batch(NamedTuple):
    """Words of at most LONGEST symbols, from the start on, padded to N = SEGMENT."""

    symbols: "Tensor"
    """(b, N) int64"""
    target: "Tensor"
    """(b, N) int64, the next symbols"""
    states: "Tensor"
    """(b, N) int64, of the machine after each symbol"""
    stacks: "Tensor"
    """(b, N, slots) int64, the bottom first; 0 where a slot is empty"""
    mask: "Tensor"
    """(b, N) bool, positions that are no padding"""


def slots_of(name: str) -> int:
    """Slots of the deepest stack of a language's words of at most LONGEST symbols, and at least one."""
    return {"anbn": LONGEST // 2, "parity": 1}.get(name, DEPTH)


def batch_of(found: list[Labels], slots: int) -> Batch:
    """Words with their labels as tensors."""
    import torch

    shape = len(found), SEGMENT
    symbols, target, states = (torch.zeros(shape, dtype=torch.long) for _ in range(3))
    stacks, mask = torch.zeros(*shape, slots, dtype=torch.long), torch.zeros(shape, dtype=torch.bool)
    for row, word in enumerate(found):
        size = len(word.symbols) - 1  # the end is predicted, and not read
        symbols[row, :size] = torch.tensor(word.symbols[:-1])
        target[row, :size] = torch.tensor(word.symbols[1:])
        states[row, :size] = torch.tensor(word.states[:-1])
        mask[row, :size] = True
        for place, stack in enumerate(word.stacks[:-1]):
            stacks[row, place, : len(stack)] = torch.tensor(stack, dtype=torch.long)
    return Batch(symbols, target, states, stacks, mask)


def words_of(language: Language, count: int, held_out: int, seed: int) -> tuple[list[Labels], list[Labels]]:
    """Training words, and others that are held out, each once; of a language with few words at most a third of them."""
    words, generator = Words(language, LONGEST), random.Random(seed)
    held_out = min(held_out, sum(words.by_length) // 3)
    held: set[tuple[int, ...]] = set()
    while len(held) < held_out:
        held.add(tuple(words.draw(generator)))
    train: list[list[int]] = []
    while len(train) < count:
        word = words.draw(generator)
        if tuple(word) not in held:
            train.append(word)
    every = [[labels(language, word) for word in part] for part in (train, sorted(held))]
    one, other = ([found for found in part if found is not None] for part in every)
    return one, other


def model_of(kind: str, symbols: int) -> "ModelConfig":
    """One layer of a kind, with the parameters of the reference, by the width of the FFN."""
    from benchmarks.models import parameter_count, with_parameters
    from brt_dist.config.schema import ModelConfig

    def of(kind: str) -> ModelConfig:
        shape = {"layers": 1, "width": 64, "heads": 4, "head_dim": 16, "vocab_size": symbols, "dropout": 0.0}
        return ModelConfig.model_validate(shape | {"ffns": {"relu": {"width": 128}}} | MODELS[kind])

    return with_parameters(of(kind), parameter_count(of(REFERENCE)))


def trained(name: str, kind: str, heads: Heads, seed: int, steps: int, words: tuple[int, int]) -> Cell:
    """Train a model on a language, and ask it about words that are held out.  Needs process groups of one.

    Args:
        words: how many to train on, and how many are held out.
    """
    import torch
    from torch.nn import functional

    from benchmarks.models import parameter_count
    from brt_dist.model.model import BlockRecurrentModel, full_logits
    from brt_dist.model.oracle_heads import OracleHeads

    language = LANGUAGES[name](TYPES, DEPTH)
    train, held = words_of(language, *words, seed)
    slots, symbols = slots_of(name), FIRST + len(language.letters)
    torch.manual_seed(seed)
    config = model_of(kind, symbols)
    model = BlockRecurrentModel(config, seed=seed)
    oracle = OracleHeads(config.width, language.states + 1, slots, symbols, "forced" if heads == "forced" else "latent")
    hidden: list[Tensor] = []  # of the last forward, (N, b, D)
    model.final_norm.register_forward_hook(lambda module, given, found: hidden.append(found))

    def read(batch: Batch) -> "tuple[Tensor, Tensor]":
        starts = torch.zeros(len(batch.symbols), SEGMENT // config.window, dtype=torch.bool)
        starts[:, 0] = True
        hidden.clear()
        logits, _ = model(batch.symbols, model.blank_memory(len(batch.symbols)), starts)
        return full_logits(logits, symbols), hidden[0].transpose(0, 1)

    optimizer = torch.optim.Adam([*model.parameters(), *oracle.parameters()], lr=RATE)
    generator = random.Random(seed)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / 20, 2 * (1 - step / steps))  # linear to 0 in the second half
        batch = batch_of(generator.sample(train, BATCH), slots)
        logits, x = read(batch)
        loss = functional.cross_entropy(logits[batch.mask], batch.target[batch.mask])
        known = oracle.losses(x.detach() if heads == "none" else x, batch.states, batch.stacks, batch.mask)
        optimizer.zero_grad()
        (loss + known.state + known.stack).backward()
        torch.nn.utils.clip_grad_value_([*model.parameters(), *oracle.parameters()], CLIP)
        optimizer.step()
    with torch.no_grad():
        batch = batch_of(held, slots)
        logits, x = read(batch)
        of_state, of_stack = oracle(x)
    predicted = [
        legal_share(language, word.symbols[1:-1], row[: len(word.symbols) - 1].tolist()) * (len(word.symbols) - 1)
        for word, row in zip(held, logits.argmax(-1), strict=True)
    ]
    asked = int(batch.mask.sum())
    return {
        "language": name, "model": kind, "heads": heads, "seed": seed, "steps": steps,
        "legal": sum(predicted) / asked,
        "state": int((of_state.argmax(-1) == batch.states)[batch.mask].sum()) / asked,
        "stack": int((of_stack.argmax(-1) == batch.stacks).all(-1)[batch.mask].sum()) / asked,
        "parameters": parameter_count(config),
    }  # fmt: skip


def table(cells: list[Cell]) -> str:
    """Markdown: a row for each language, model and kind of heads; means over seeds, and the least of them."""
    rows = [["language", "model", "heads", "legal", "state", "stack", "seeds"]]
    for name in LANGUAGES:
        for kind in MODELS:
            for heads in HEADS:
                found = [
                    cell for cell in cells if (cell["language"], cell["model"], cell["heads"]) == (name, kind, heads)
                ]
                if found:
                    shown = [_shown([cell[what] for cell in found]) for what in ("legal", "state", "stack")]
                    rows.append([name, kind, heads, *shown, str(len(found))])
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def _shown(values: list[float]) -> str:
    return f"{statistics.fmean(values):.3f} ({min(values):.3f})"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("build/languages"))
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds (0, 1, ...) for each")
    parser.add_argument("--steps", type=int, default=200, help=f"training steps, of {BATCH} words each")
    parser.add_argument("--languages", nargs="*", default=list(LANGUAGES), choices=LANGUAGES, help="which languages")
    parser.add_argument("--heads", nargs="*", default=list(HEADS), choices=HEADS, help="which ways of training heads")
    parser.add_argument(
        "--words", type=int, nargs=2, default=(2000, 300), help="number of words to train on, and held out"
    )
    options = parser.parse_args()
    import torch

    from brt_dist.parallel.layout import single_process

    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "languages.json"
    cells: list[Cell] = json.loads(file.read_text()) if file.exists() else []
    with single_process():
        for seed in range(options.seeds):
            for name in options.languages:
                for kind in MODELS:
                    for heads in options.heads:
                        key = {"language": name, "model": kind, "heads": heads, "seed": seed, "steps": options.steps}
                        if any(key.items() <= cell.items() for cell in cells):
                            continue
                        cells.append(trained(name, kind, heads, seed, options.steps, tuple(options.words)))
                        write_atomic(file, json.dumps(cells, indent=1) + "\n")
                        print(", ".join(map(str, cells[-1].values())), flush=True)
    print(table(cells))
    return 0


if __name__ == "__main__":
    sys.exit(main())
