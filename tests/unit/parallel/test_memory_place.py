"""Where memory is kept changes no bit of training, of a skipped step or of an evaluation."""

import math
from typing import Any

import torch

from brt_dist.config.schema import Config
from brt_dist.parallel.engine import build_engine
from brt_dist.parallel.layout import Layout, single_process
from brt_dist.parallel.micro_batches import StepInput

STREAMS, SEGMENT, WINDOW, VOCAB = 4, 32, 8, 64


def config(place: str, recompute: bool) -> Config:
    return Config.model_validate(
        {
            "model": {
                "layers": 2, "width": 16, "heads": 2, "head_dim": 8, "mlp_width": 32, "vocab_size": VOCAB,
                "window": WINDOW, "states": 4, "recurrent_layers": (1,), "dropout": 0.1,
            },
            "data": {"dataset": "unused", "segment": SEGMENT, "streams": STREAMS},
            "parallel": {"stream_memory": place, "recompute": recompute},
            "optimizer": {"learning_rate": 1e-2, "warmup_steps": 0},
            "run": {"directory": "unused", "steps": 4, "precision": "bf16"},
        }
    )  # fmt: skip


def step(number: int, is_finite: bool = True) -> StepInput:
    tokens = torch.randint(VOCAB, (STREAMS, SEGMENT + 1), generator=torch.Generator().manual_seed(number))
    starts = torch.zeros(STREAMS, SEGMENT // WINDOW, dtype=torch.bool)
    starts[number % STREAMS, 1] = True
    count: Any = STREAMS * SEGMENT if is_finite else math.nan
    mask = torch.ones(STREAMS, SEGMENT, dtype=torch.bool)
    return StepInput(number, starts, tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), mask, count)


def outcome(place: str, recompute: bool) -> tuple[list[float], list[torch.Tensor]]:
    with single_process() as device:
        given = config(place, recompute)
        engine = build_engine(given, Layout.of(given, 0), device)
        numbers = []
        for number in range(1, 5):
            result = engine.train_step(step(number, is_finite=number != 2), 1e-2)
            assert result.is_finite == (number != 2)
            numbers.append(result.loss)
            with engine.evaluation_memory() as memory:
                numbers += [engine.evaluate_step(step(10 + segment), memory) for segment in range(2)]
        tensors = [piece.on_host() for piece in engine.pieces()]
        engine.close()
        return numbers, tensors


def test_memory_in_host_memory_changes_no_bit_of_training_skips_and_evaluation() -> None:
    (losses, tensors), (expected, truth) = outcome("host", recompute=True), outcome("device", recompute=False)
    assert list(map(repr, losses)) == list(map(repr, expected))  # that of the skipped step is not a number
    assert len(set(map(repr, losses))) == len(losses) - 2  # the evaluation after it repeats the one before
    assert all(torch.equal(a, b) for a, b in zip(tensors, truth, strict=True))
