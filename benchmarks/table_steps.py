"""How long a step of each row of the paper's Table 1 takes, relative to Slide:13L, at the paper's shapes.

`python -m benchmarks.table_steps` times one layer of each kind, forward and backward on 4,096 tokens, and the loss over
32,768 words.  A row is the sum of its layers and the loss: a whole step of 12 layers would take a CPU core a minute.
Layers take turns, so that a slower moment of the machine slows all of them.  Dropout and the update are left out; the
paper updates once in 131,072 tokens.

--device D     cpu (default): fp32, one thread, CPU seconds; cuda: bf16, seconds on the clock, 8 streams
--repeats N    runs of each layer that count
--json FILE    keep the figures           --show FILE    print the table of such a file; measure nothing
"""

import argparse
import statistics
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from benchmarks.figures import add_options, keep, shows
from launch.reproduce.kit import Row, expected, rows

TOKENS = 4096  # of a stream, in one segment or several
VOCABULARY = 32768
BASE = "Slide:13L"
LOSS = "loss"
_STACK = 4  # layers of the model that times layers with feedback
_FEW = ["model.dropout=0", "model.vocab_size=64"]


def weights(row: Row) -> dict[str, float]:
    """How often a row has each part; the sum of a row's parts is its step.

    A layer with feedback runs block by block between the others, so it is timed in a small model: the window layer is a
    third of what a model of four layers takes more than its recurrent layer alone.
    """
    model = row.config(["model.vocab_size=64"]).model
    recurrent = len(model.mixers["recurrent"].layers or ())
    windows = model.layers - recurrent
    found = Counter({LOSS: 1.0})
    if model.feedback:
        share = windows / (_STACK - 1)
        found.update({f"{row.key}/stack": share, f"{row.key}/recurrent": recurrent - share})
        return dict(found)
    found[_window_part(row)] += windows
    if recurrent:
        found[f"{row.key}/recurrent"] += recurrent
    return dict(found)


def _window_part(row: Row) -> str:
    config = row.config()
    return f"window {config.model.window}, segment {config.data.segment}"


def overrides(part: str, row: Row) -> list[str]:
    """What makes a row the model that times one of its parts."""
    if part.endswith("/stack"):
        return [*_FEW, f"model.layers={_STACK}", "model.mixers.recurrent.layers=[0]"]
    layers = [0] if part.endswith("/recurrent") else []
    return [*_FEW, "model.layers=1", f"model.mixers.recurrent.layers={layers}"]


def seconds(measured: dict[str, list[float]]) -> dict[str, float]:
    """Seconds of a step of each row, from those of the parts."""
    middle = {part: statistics.median(times) for part, times in measured.items()}
    return {
        row.name: sum(count * middle[part] for part, count in weights(row).items()) for row in rows("table1", "paper")
    }


def table(figures: dict[str, Any]) -> str:
    """Markdown: each row's step relative to Slide:13L, here and in the paper."""
    found, paper = seconds(figures["seconds"]), expected("step_time")
    lines = ["| row | step | relative to Slide:13L | in the paper |", "|---|---|---|---|"]
    for name, taken in found.items():
        of_paper = f"{paper[name].value:.2f} ({paper[name].sureness})" if name in paper else "-"
        lines.append(f"| {name} | {taken:.2f} s | {taken / found[BASE]:.2f} | {of_paper} |")
    return "\n".join(lines)


def step_of(row: Row, part: str, streams: int, kind: str) -> Callable[[], None]:
    """Forward and backward of a part.  Needs process groups of one."""
    import torch

    from brt_dist.model.model import BlockRecurrentModel, TokenEmbedding

    dtype = torch.float32 if kind == "cpu" else torch.bfloat16
    if part == LOSS:
        model = row.config([f"model.vocab_size={VOCABULARY}"]).model
        embedding = TokenEmbedding(model).to(kind, dtype)
        torch.nn.init.normal_(embedding.weight, std=0.02)
        x = torch.randn(TOKENS, streams, model.width, device=kind, dtype=dtype, requires_grad=True)
        target = torch.randint(VOCABULARY, (TOKENS, streams), device=kind)

        def loss() -> None:
            embedding.losses(x, target).sum().backward()

        return loss
    config = row.config(overrides(part, row))
    segment, window = config.data.segment, config.model.window
    streams *= TOKENS // segment
    network = BlockRecurrentModel(config.model, seed=0).to(kind, dtype)
    tokens = torch.randint(64, (streams, segment + 1), device=kind)
    starts = torch.zeros(streams, segment // window, dtype=torch.bool, device=kind)
    memory = network.blank_memory(streams)

    def step() -> None:
        nats, _ = network(tokens[:, :-1], memory, starts, target=tokens[:, 1:])
        nats.sum().backward()

    return step


def measure(kind: str, repeats: int) -> dict[str, Any]:
    """Seconds of each part, each time that it ran.  Needs process groups of one."""
    import torch

    streams, now = (1, time.process_time) if kind == "cpu" else (8, time.perf_counter)
    steps: dict[str, Callable[[], None]] = {}
    for row in rows("table1", "paper"):
        for part in weights(row):
            if part not in steps:
                steps[part] = step_of(row, part, streams, kind)
    taken: dict[str, list[float]] = {part: [] for part in steps}
    for _ in range(repeats + 1):
        for part, step in steps.items():
            began = now()
            step()
            if kind == "cuda":
                torch.cuda.synchronize()
            taken[part].append(now() - began)
            print(f"{part}: {taken[part][-1]:.2f} s", flush=True)
    return {"device": kind, "torch": torch.__version__, "seconds": {part: times[1:] for part, times in taken.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.table_steps", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="which device")
    parser.add_argument("--repeats", type=int, default=2, help="runs of each layer that count")
    add_options(parser)
    options = parser.parse_args()
    if shows(parser, options, table):
        return
    import torch

    from brt_dist.parallel.layout import single_process

    torch.set_num_threads(1)
    with single_process(options.device):
        figures = measure(options.device, options.repeats)
    keep(options, figures)
    print(table(figures))


if __name__ == "__main__":
    main()
