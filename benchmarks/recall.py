"""A task that only memory can solve: a key is shown once, and asked for again many windows later.

Each document begins with a key, one of KEYS tokens, at a random place of its first block; the rest is noise.  In every
block one token asks for the key.  The answer is never in the input, so what is not carried is lost: a sliding window
of L layers sees at most L*W tokens back and can only guess (1/KEYS) at what was shown before that.

`python -m benchmarks.recall` trains one model of each kind and prints the accuracy by distance.
"""

import argparse
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from brt_dist.config.schema import ModelConfig
from brt_dist.model.model import BlockRecurrentModel, loss_sum
from brt_dist.model.parameters import seeded_generator

KEYS, NOISE = 16, 15
ASK = KEYS + NOISE  # the token that asks
VOCAB = ASK + 1


@dataclass(frozen=True)
class Size:
    """blocks: of a document, which is one segment; streams: documents per step."""

    window: int = 8
    blocks: int = 14
    streams: int = 32
    width: int = 48
    steps: int = 500
    learning_rate: float = 1e-2


def model_config(size: Size, **settings: Any) -> ModelConfig:
    shape = {
        "layers": 2, "width": size.width, "heads": 4, "head_dim": size.width // 4, "mlp_width": 2 * size.width,
        "vocab_size": VOCAB, "window": size.window, "states": 8, "recurrent_layers": (0,), "dropout": 0.0,
    }  # fmt: skip
    return ModelConfig.model_validate(shape | settings)


def documents(size: Size, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Input (b, N), target (b, N) and mask (b, N): where the key is asked for."""
    b, t, w = size.streams, size.blocks, size.window
    key = torch.randint(KEYS, (b,), generator=generator)
    tokens = torch.randint(KEYS, KEYS + NOISE, (b, t, w), generator=generator)
    rows = torch.arange(b)
    tokens[rows, 0, torch.randint(w, (b,), generator=generator)] = key
    asked = torch.randint(w, (b, t - 1), generator=generator)
    tokens[:, 1:].scatter_(2, asked.unsqueeze(2), ASK)
    tokens = tokens.view(b, t * w)
    return tokens, key.unsqueeze(1).expand_as(tokens).contiguous(), tokens == ASK


def train(config: ModelConfig, size: Size, seed: int) -> BlockRecurrentModel:
    """Train on fresh documents, one step each, with AdamW and a rate that falls to zero."""
    model = BlockRecurrentModel(config, seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=size.learning_rate, weight_decay=0.0)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, size.learning_rate, total_steps=size.steps)
    generator = seeded_generator(f"recall/train/{seed}")
    starts = document_starts(size)
    memory = model.blank_memory(size.streams)
    for _ in range(size.steps):
        tokens, target, mask = documents(size, generator)
        logits, _ = model(tokens, memory, starts)
        loss = loss_sum(logits, target, mask) / mask.sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
    return model


def document_starts(size: Size) -> Tensor:
    starts = torch.zeros(size.streams, size.blocks, dtype=torch.bool)
    starts[:, 0] = True
    return starts


@torch.no_grad()
def accuracy_by_block(model: BlockRecurrentModel, size: Size, seed: int, batches: int = 8) -> list[float]:
    """Share of right answers in blocks 1, 2, ...: that many windows after the key."""
    generator = seeded_generator(f"recall/test/{seed}")
    right, memory = torch.zeros(size.blocks - 1), model.blank_memory(size.streams)
    for _ in range(batches):
        tokens, target, mask = documents(size, generator)
        logits, _ = model(tokens, memory, document_starts(size))
        hits = (target == logits.argmax(-1).T) & mask
        right += hits.view(size.streams, size.blocks, size.window).sum((0, 2))[1:]
    return (right / (size.streams * batches)).tolist()


KINDS: dict[str, dict[str, Any]] = {
    "sliding window": {"recurrent_layers": ()},
    **{
        f"{gate}:{cell}": {"gate": gate, "cell": cell}
        for gate in ("fixed", "lstm")
        for cell in ("skip", "single", "dual")
    },
}


def main() -> None:
    from brt_dist.parallel.layout import single_process

    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--blocks", type=int, default=34, help="of a document; the key is asked for up to the last")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=list(KINDS), metavar="KIND", help=", ".join(KINDS))
    options = parser.parse_args()
    size = Size(steps=options.steps, blocks=options.blocks)
    print(f"chance {1 / KEYS:.3f}; accuracy by windows since the key, {size.steps} steps, seed {options.seed}")
    with single_process():
        for kind in options.only:
            began = time.perf_counter()
            model = train(model_config(size, **KINDS[kind]), size, options.seed)
            found = accuracy_by_block(model, size, options.seed)
            shown = "  ".join(f"{i + 1}: {found[i]:.2f}" for i in range(0, len(found), max(1, len(found) // 8)))
            print(f"{kind:15} {shown}   ({time.perf_counter() - began:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
