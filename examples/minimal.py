"""The library in a script of your own: from a text file to a trained model that carries memory from segment to segment.

    python examples/minimal.py TEXT
    torchrun --nproc-per-node 2 examples/minimal.py TEXT

Both train the same model and print the same losses: with two processes each holds half of every layer.  There is no
launcher here, no run directory and no checkpoint; `brt train` adds those.  What you see is all that training needs.
"""

import argparse
import math
import os
from pathlib import Path

from brt_dist.config.rules import check
from brt_dist.config.schema import Config
from brt_dist.data.in_memory import InMemoryDataset
from brt_dist.data.reader import SegmentReader
from brt_dist.data.stream_schedule import StreamSchedule
from brt_dist.data.tokenizers import ByteTokenizer
from brt_dist.kinds import WEIGHT_FORMATS
from brt_dist.optim.learning_rate import learning_rate
from brt_dist.parallel.start import joined

STREAMS = 8  # rows of a batch; each reads one document after another, and carries memory along it


def make_config(text: Path, out: Path, steps: int) -> Config:
    """Everything that can be set, by section; `brt config schema` lists all keys with their defaults."""
    return Config.model_validate(
        {
            "model": {
                "layers": 2,
                "width": 64,
                "heads": 4,
                "head_dim": 16,
                "dropout": 0.0,
                "window": 32,  # a token attends to the 32 tokens before it, ...
                "mixers": {
                    "window": {},
                    "recurrent": {"layers": [-1], "states": 16},  # ... and in the last layer to 16 carried vectors
                },
                "ffns": {"relu": {"width": 256}},
                "vocab_size": ByteTokenizer.vocab_size,
            },
            "data": {"dataset": text, "streams": STREAMS, "segment": 128},
            "parallel": {"tensor": int(os.environ.get("WORLD_SIZE", "1")), "micro_batch": STREAMS},
            "optimizer": {"name": "adamw", "learning_rate": 1e-2, "warmup_steps": min(20, steps)},
            "run": {"directory": out, "steps": steps, "precision": "fp32"},
        }
    )


def read_text(path: Path) -> tuple[InMemoryDataset, InMemoryDataset]:
    """Training and held-out documents: the text cut into equal parts, the last tenth of them held out.

    Memory is cleared where a document begins.  If your texts have natural beginnings, cut there instead.
    """
    text = path.read_text()
    size = len(text) // (10 * STREAMS) + 1
    parts = [text[begin : begin + size] for begin in range(0, len(text), size)]
    held_out = -(-len(parts) // 10)
    tokenizer = ByteTokenizer()
    return (
        InMemoryDataset.of_texts(parts[:-held_out], tokenizer),
        InMemoryDataset.of_texts(parts[-held_out:], tokenizer),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("text", type=Path, metavar="TEXT", help="a text file, some 100 kB or more")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path("minimal_model"), help="folder for the trained weights")
    options = parser.parse_args()
    if options.out.exists():
        parser.error(f"{options.out} exists; choose another folder with --out")

    config = make_config(options.text, options.out, options.steps)
    check(config)  # raises a ConfigError that says what does not fit, and what would
    train_data, held_out = read_text(options.text)

    with joined(config) as (layout, device):
        # DeepSpeed picks its device when it is imported, so this comes after the line above.
        from brt_dist.evaluation.evaluate import evaluate
        from brt_dist.export.weights import Weights
        from brt_dist.parallel.engine import build_engine
        from brt_dist.parallel.step_input import step_input, streams_to_read
        from brt_dist.parallel.whole_weights import whole_weights

        def say(line: str) -> None:
            if layout.rank == 0:
                print(line, flush=True)

        # Model, optimizer and the memory of all streams; this rank's part of each.
        engine = build_engine(config, layout, device)

        # Which document each stream reads at which step: a pure function, which every rank computes by itself.
        schedule = StreamSchedule(
            train_data.lengths,
            streams=config.data.streams,
            segment=config.data.segment,
            window=config.model.window,
            seed=config.run.seed,
        )
        reader = SegmentReader(train_data, schedule)
        cursor = schedule.start()  # where all streams are; with the engine's state this is what a checkpoint holds

        for step in range(1, config.run.steps + 1):
            plan, cursor = schedule.step(cursor)
            segments = reader.read(plan, streams_to_read(layout))
            batch = step_input(step, plan, segments, layout, device)
            rate = learning_rate(step, config.run.steps, config.optimizer)
            result = engine.train_step(batch, rate)  # forward, backward, update; then the new memory counts
            if step % 10 == 0 or step in (1, config.run.steps):
                say(f"step {step}  loss {result.loss:.6f}  bits/byte {result.loss / math.log(2):.3f}")

        # What is the carried memory worth?  Both read the same text, which was never trained on.
        for memory in ("carried", "cleared"):
            found = evaluate(engine, held_out, max_steps=1000, memory_use=memory)
            say(f"held out, memory {memory}: {found.bits_per_token:.3f} bits/byte")

        # Read them with brt_dist.export.load.load_model(OUT), or train on with `brt train ... run.init_from=OUT`.
        tensors = whole_weights(engine)
        if layout.rank == 0:
            weights = Weights.of(config.model, tensors, tokenizer=ByteTokenizer.file)
            files = WEIGHT_FORMATS["safetensors"].write(weights, options.out, 10**9)
            say(f"{options.out}: {', '.join(files)}")
        engine.close()


if __name__ == "__main__":
    main()
