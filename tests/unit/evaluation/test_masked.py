"""An encoder's loss and accuracy in training's evaluation, against a plain loop; and what an encoder cannot do."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.models import trained_model
from brt_dist.config.loading import load
from brt_dist.config.rules import DatasetFacts, check
from brt_dist.config.schema import Config, ModelConfig
from brt_dist.data.in_memory import InMemoryDataset
from brt_dist.data.objectives.base import EVALUATION
from brt_dist.data.objectives.mlm import MaskedTokens
from brt_dist.data.one_pass import OnePassSchedule
from brt_dist.data.reader import SegmentReader
from brt_dist.errors import ConfigError
from brt_dist.evaluation.evaluate import evaluate
from brt_dist.export.formats.hf import refuse_unknown_kinds
from brt_dist.model.model import full_logits
from brt_dist.parallel.device import Device
from brt_dist.parallel.layout import Layout, single_process

TOKENS = 20


@pytest.fixture
def device() -> Iterator[Device]:
    with single_process() as device:
        yield device


def config(**model: object) -> Config:
    shape = {
        "layers": 2, "width": 16, "heads": 2, "head_dim": 8, "window": 8, "dropout": 0.0, "objective": "mlm",
        "vocab_size": TOKENS + 1, "ffns": {"relu": {"width": 24}},
        "mixers": {"fnet": {}, "linear": {"layers": [1]}},
    }  # fmt: skip
    return Config.model_validate(
        {
            "model": shape | model,
            "data": {"dataset": "unused", "segment": 32, "streams": 3},
            "parallel": {"micro_batch": 1},
            "optimizer": {"warmup_steps": 0},
            "run": {"directory": "run", "steps": 1, "precision": "fp32", "seed": 5},
        }
    )


def test_loss_and_accuracy_are_those_of_a_plain_loop(device: Device) -> None:
    from brt_dist.parallel.engine import build_engine

    given = config()
    random = np.random.default_rng(1)
    dataset = InMemoryDataset([random.integers(TOKENS, size=size) for size in (3, 150, 64, 41, 90)], TOKENS)
    engine = build_engine(given, Layout.of(given, 0), device)
    try:
        found = evaluate(engine, dataset, 99)
        again = evaluate(engine, dataset, 99)
        model = trained_model(engine)
    finally:
        engine.close()
    assert found == again

    schedule = OnePassSchedule(dataset.lengths, streams=3, segment=32, window=8)
    reader, cursor, memory = SegmentReader(dataset, schedule), schedule.start(), model.blank_memory(3)
    nats, right, tokens, number = 0.0, 0, 0, 0
    while not schedule.is_finished(cursor):
        number += 1
        plan, cursor = schedule.step(cursor)
        hidden = MaskedTokens(TOKENS, EVALUATION).examples(number, plan, reader.read(plan, range(3)))
        with torch.no_grad():
            logits, memory = model(torch.from_numpy(hidden.input), memory, torch.from_numpy(plan.starts))
        scores = full_logits(logits, TOKENS + 1).double().log_softmax(-1).numpy()
        for row, place in zip(*np.nonzero(hidden.mask), strict=True):
            nats -= float(scores[row, place, hidden.target[row, place]])
            right += int(scores[row, place].argmax() == hidden.target[row, place])
            tokens += 1
    assert found.tokens == tokens
    assert found.loss == pytest.approx(nats / tokens, rel=1e-5)
    assert found.accuracy == right / tokens


def test_rules() -> None:
    check(config())
    with pytest.raises(ConfigError, match=r"fnet is not causal.*model\.objective=mlm, to train an encoder"):
        check(config(objective="causal"))
    sampling = config().run.model_copy(update={"sample_tokens": 3})
    with pytest.raises(ConfigError, match=r"run\.sample_tokens=3 .* nearest: run\.sample_tokens=0"):
        check(config().model_copy(update={"run": sampling}))
    facts = DatasetFacts(documents=9, vocab_size=TOKENS, tokenizer_digest="a")
    check(config(), facts)
    with pytest.raises(ConfigError, match=rf"nearest: model\.vocab_size={TOKENS + 1}"):
        check(config(vocab_size=TOKENS), facts)
    split = {"tensor": 2, "sequence_parallel": True, "micro_batch": 1}
    given = config()
    with pytest.raises(ConfigError, match=r"kind fnet with parallel\.sequence_parallel=true"):
        check(Config.model_validate(given.model_dump() | {"parallel": split}))


def test_an_encoder_does_not_continue_text() -> None:
    model = config().model
    with pytest.raises(ConfigError, match=r"run was trained with model\.objective=mlm"):
        model.must_continue_text("run")
    ModelConfig().must_continue_text("run")
    with pytest.raises(ConfigError, match=r"model\.objective=mlm: not in the exported code"):
        refuse_unknown_kinds(model)


def test_the_recipe_loads() -> None:
    path = Path(__file__).parents[3] / "examples" / "fnet_mlm.yaml"
    given = load([path], ["data.dataset=d"]).config
    check(given)
    assert given.model.with_tokens(32000).vocab_size == 32001
    assert {given.model.mixer_of(layer).kind for layer in range(given.model.layers)} == {"fnet"}
