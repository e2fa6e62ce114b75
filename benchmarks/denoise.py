"""An encoder-decoder that restores text, with all of the encoder's tokens and with half and a fifth of them.

`python -m benchmarks.denoise --out build/denoise` trains `model.objective: denoise` (arXiv 2305.15099) for each share p
of tokens that the encoder keeps and each seed, on one CPU, and a language model that is only the decoder.  A document
is a row of random letters, so only the encoder can know the next one, and 30 % are missing from what the encoder reads,
in spans.  It prints loss and accuracy on documents that it was not trained on, and writes OUT/denoise.json.  Run it
again to continue.

`--time` measures steps of a larger model instead, on random tokens, the shares in turn, and adds the medians to the
file: run it on a quiet machine.
"""

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from brt_dist.files import write_atomic

if TYPE_CHECKING:
    from brt_dist.config.schema import Config
    from brt_dist.data.in_memory import InMemoryDataset
    from brt_dist.parallel.device import Device

SHARES = (1.0, 0.5, 0.2)
ALONE = "decoder alone"
ALPHABET, LENGTH = 16, 16  # letters there are, and of a document
STREAMS, STEPS = 32, 800
TIMED = (512, 1024)  # tokens of a segment


def letters(documents: int, seed: tuple[int, int]) -> "InMemoryDataset":
    """Documents of random letters."""
    from brt_dist.data.in_memory import InMemoryDataset

    return InMemoryDataset(list(np.random.default_rng(seed).integers(ALPHABET, size=(documents, LENGTH))), ALPHABET)


def configuration(keep: float | None, seed: int, steps: int, **sizes: int) -> "Config":
    """A run that keeps a share of the encoder's tokens; None: without an encoder.

    Args:
        sizes: segment, width, encoder (layers), decoder (layers) and streams.
    """
    from brt_dist.config.schema import Config

    encoder, decoder, width = (sizes["encoder"] if keep else 0), sizes["decoder"], sizes["width"]
    first = list(range(encoder))
    model = {
        "objective": "denoise" if keep else "causal",
        "layers": encoder + decoder,
        "encoder": {"layers": encoder, "shortened": first[1:2], "keep": keep or 1.0},
        "mixers": {"window": {"query_length": 4.0}} | ({"bidirectional": {"layers": first}} if keep else {}),
    }
    return Config.model_validate(
        {
            "model": {
                **model, "width": width, "heads": width // 16, "head_dim": 16, "window": sizes["segment"],
                "vocab_size": ALPHABET + (2 if keep else 0), "dropout": 0.0, "ffns": {"relu": {"width": 4 * width}},
            },
            "data": {"dataset": "none", "segment": sizes["segment"], "streams": sizes["streams"]},
            "parallel": {"micro_batch": sizes["streams"], "zero_stage": 0},
            "optimizer": {"learning_rate": 4e-3, "warmup_steps": min(50, steps // 2), "clip_norm": 1.0,
                          "schedule": "cosine"},
            "run": {"directory": "nowhere", "steps": steps, "precision": "fp32", "seed": seed, "device": "cpu"},
        }
    )  # fmt: skip


def trained(keep: float | None, seed: int, steps: int, device: "Device") -> dict[str, Any]:
    """Train on documents that come only once; what held-out documents cost."""
    from brt_dist.config.rules import check
    from brt_dist.data.objectives.base import objective_of
    from brt_dist.data.reader import SegmentReader
    from brt_dist.data.stream_schedule import StreamSchedule
    from brt_dist.evaluation.evaluate import evaluate
    from brt_dist.optim.learning_rate import learning_rate
    from brt_dist.parallel.engine import build_engine
    from brt_dist.parallel.layout import Layout
    from brt_dist.parallel.step_input import step_input

    config = configuration(keep, seed, steps, segment=LENGTH, width=48, encoder=2, decoder=1, streams=STREAMS)
    check(config)
    streams = config.data.streams
    dataset = letters(streams * (steps + 1), (seed, 0))
    schedule = StreamSchedule(dataset.lengths, streams=streams, segment=LENGTH, window=LENGTH, seed=seed)
    reader, cursor, objective = SegmentReader(dataset, schedule), schedule.start(), objective_of(config.model, seed)
    layout, began = Layout.of(config, 0), time.perf_counter()
    engine = build_engine(config, layout, device)
    try:
        for number in range(1, steps + 1):
            plan, cursor = schedule.step(cursor)
            segments = reader.read(plan, range(streams))
            step = step_input(number, plan, segments, layout, device, objective=objective)
            engine.train_step(step, learning_rate(number, steps, config.optimizer))
        found = evaluate(engine, letters(1024, (seed, 1)), 512)
    finally:
        engine.close()
    return {
        "keep": keep, "seed": seed, "steps": steps, "bits_per_token": found.bits_per_token,
        "accuracy": found.accuracy, "seconds": round(time.perf_counter() - began, 1),
    }  # fmt: skip


def timed(segment: int, steps: int, device: "Device") -> Iterator[dict[str, Any]]:
    """Median seconds of a step for each share, which take turns."""
    import torch

    from brt_dist.parallel.engine import build_engine
    from brt_dist.parallel.layout import Layout
    from brt_dist.parallel.micro_batches import StepInput

    sizes = {"segment": segment, "width": 128, "encoder": 6, "decoder": 2, "streams": 1}
    configs = {keep: configuration(keep, 0, steps, **sizes) for keep in SHARES}
    engines = {keep: build_engine(config, Layout.of(config, 0), device) for keep, config in configs.items()}
    seconds: dict[float, list[float]] = {keep: [] for keep in SHARES}
    draw = torch.Generator().manual_seed(0)
    tokens, source = (torch.randint(ALPHABET, (1, segment), generator=draw) for _ in range(2))
    mask, starts = torch.ones_like(tokens, dtype=torch.bool), torch.ones(1, 1, dtype=torch.bool)
    for number in range(1, steps + 1):
        for keep, engine in engines.items():
            began = time.perf_counter()
            engine.train_step(StepInput(number, starts, tokens, tokens, mask, segment, source), 1e-4)
            seconds[keep].append(time.perf_counter() - began)
    for keep, engine in engines.items():
        yield {"keep": keep, "segment": segment, "steps": steps, "seconds": statistics.median(seconds[keep][1:])}
        engine.close()


def table(results: dict[str, Any]) -> str:
    """Markdown: a row for each share; means over seeds with their range, and times relative to all tokens kept."""
    cells, times = results["cells"], results["times"]
    segments = sorted({one["segment"] for one in times})
    header = ["tokens kept", "bits/token", "accuracy", *(f"step, {segment} tokens" for segment in segments)]
    rows = [header]
    for keep in dict.fromkeys(cell["keep"] for cell in cells):
        found = [cell for cell in cells if cell["keep"] == keep]
        row = [ALONE if keep is None else f"{keep:.0%}"]
        for name, form in (("bits_per_token", ".3f"), ("accuracy", ".3f")):
            values = [cell[name] for cell in found if cell[name] is not None]
            ends = f" ({min(values):{form}} to {max(values):{form}})" if len(values) > 1 else ""
            row.append(f"{statistics.fmean(values):{form}}{ends}" if values else "")
        for segment in segments:
            seconds = {one["keep"]: one["seconds"] for one in times if one["segment"] == segment}
            row.append("" if keep is None else f"{seconds[keep] / seconds[1.0]:.2f}")
        rows.append(row)
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(header), *lines[1:]])


def main() -> None:
    import torch

    from brt_dist.parallel.layout import single_process

    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("build/denoise"))
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds (0, 1, ...) for each")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"training steps, of {STREAMS * LENGTH} tokens each")
    parser.add_argument("--time", type=int, default=0, metavar="STEPS", help="measure this many steps instead")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "denoise.json"
    results = json.loads(file.read_text()) if file.exists() else {"cells": [], "times": []}
    with single_process() as device:
        if options.time:
            results["times"] = [one for segment in TIMED for one in timed(segment, options.time, device)]
        for seed in range(0 if options.time else options.seeds):
            for keep in (*SHARES, None):
                key = {"keep": keep, "seed": seed, "steps": options.steps}
                if any(key.items() <= cell.items() for cell in results["cells"]):
                    continue
                results["cells"].append(trained(keep, seed, options.steps, device))
                print(results["cells"][-1], flush=True)
                write_atomic(file, json.dumps(results, indent=1) + "\n")
    write_atomic(file, json.dumps(results, indent=1) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
