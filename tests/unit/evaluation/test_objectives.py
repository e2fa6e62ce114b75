"""Loss and accuracy in training's evaluation, against a plain loop; and what is refused, for each objective."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.models import trained_model
from brt_dist.config.data_rules import DatasetFacts
from brt_dist.config.layout_rules import nearest_layout
from brt_dist.config.loading import load
from brt_dist.config.rules import check
from brt_dist.config.schema import Config, ModelConfig
from brt_dist.data.in_memory import InMemoryDataset
from brt_dist.data.objectives.base import EVALUATION, objective_of
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


def denoising(**model: object) -> Config:
    """An encoder-decoder that reads the same data."""
    shape = {
        "objective": "denoise", "vocab_size": TOKENS + 2, "window": 32, "layers": 3,
        "encoder": {"layers": 2, "shortened": [1], "keep": 0.5},
        "mixers": {"bidirectional": {"layers": [0, 1]}, "window": {}},
    }  # fmt: skip
    return config(**(shape | model))


@pytest.mark.parametrize("given", [config(), denoising()], ids=["mlm", "denoise"])
def test_loss_and_accuracy_are_those_of_a_plain_loop(device: Device, given: Config) -> None:
    from brt_dist.parallel.engine import build_engine

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

    schedule = OnePassSchedule(dataset.lengths, streams=3, segment=32, window=given.model.window)
    reader, cursor, memory = SegmentReader(dataset, schedule), schedule.start(), model.blank_memory(3)
    nats, right, tokens, number = 0.0, 0, 0, 0
    while not schedule.is_finished(cursor):
        number += 1
        plan, cursor = schedule.step(cursor)
        segments = reader.read(plan, range(3))
        hidden = objective_of(given.model, EVALUATION).examples(number, plan, segments)
        source = None if hidden.source is None else torch.from_numpy(hidden.source)
        read = torch.from_numpy(hidden.input), memory, torch.from_numpy(plan.starts)
        with torch.no_grad():
            logits, memory = model(*read, source=source)
        scores = full_logits(logits, given.model.vocab_size or 0).double().log_softmax(-1).numpy()
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


@pytest.mark.parametrize(
    ("model", "parallel", "said"),
    [
        ({"encoder": {"layers": 0}}, {}, r"both encoder and decoder need a layer; nearest: model\.encoder\.layers=1"),
        ({"encoder": {"layers": 3}}, {}, r"both encoder and decoder need a layer; nearest: model\.encoder\.layers=2"),
        ({"encoder": {"layers": 2, "shortened": [2]}}, {}, r"layers of the encoder, 0 to 1, .* nearest: \[1\]"),
        ({"encoder": {"layers": 2, "shortened": [1, 0]}}, {}, r"each once and in order; nearest: \[0, 1\]"),
        ({"window": 16}, {}, r"data\.segment=32 with model\.window=16 .* nearest: model\.window=32"),
        ({"mixers": {"window": {}}}, {}, r"kind window in layers 0, 1 of the encoder, which reads in both directions"),
        ({"mixers": {"bidirectional": {}}}, {}, r"layers 2 of the decoder is not causal, because its tokens attend"),
        ({"repeat": 2}, {}, r"run on what the decoder wrote; nearest: model\.repeat=1"),
        ({"feedback": True}, {}, r"before the decoder begins; nearest: model\.feedback=false"),
        ({}, {"pipeline": 2}, r"what the last layer of the encoder left.*nearest: parallel\.pipeline=1"),
        ({}, {"tensor": 2, "sequence_parallel": True}, r"need all tokens of the segment on every rank"),
    ],
)  # fmt: skip
def test_rules_of_an_encoder_decoder(model: dict[str, object], parallel: dict[str, object], said: str) -> None:
    check(denoising())
    with pytest.raises(ConfigError, match=said):
        check(Config.model_validate(denoising(**model).model_dump() | {"parallel": {"micro_batch": 1, **parallel}}))


def test_the_layout_that_a_refusal_names_works() -> None:
    given = denoising()
    split = given.parallel.model_copy(update={"pipeline": 2, "tensor": 2, "sequence_parallel": True})
    given = given.model_copy(update={"parallel": split})
    check(given.model_copy(update={"parallel": nearest_layout(given)}))


def test_an_encoder_is_for_denoising_alone() -> None:
    for objective in ("causal", "mlm"):
        with pytest.raises(ConfigError, match=r"model\.encoder\.layers=1 .* or model\.objective=denoise"):
            check(config(objective=objective, encoder={"layers": 1}))


@pytest.mark.parametrize(("given", "name"), [(config(), "mlm"), (denoising(), "denoise")])
def test_what_does_not_continue_text(given: Config, name: str) -> None:
    with pytest.raises(ConfigError, match=rf"run was trained with model\.objective={name}, to .* it cannot continue"):
        given.model.must_continue_text("run")
    ModelConfig().must_continue_text("run")
    with pytest.raises(ConfigError, match=rf"model\.objective={name}: not in the exported code"):
        refuse_unknown_kinds(given.model)


@pytest.mark.parametrize(
    ("recipe", "added", "kinds"),
    [("fnet_mlm", 1, {"fnet"}), ("fourier_denoise", 2, {"bidirectional", "window"})],
)
def test_the_recipes_load(recipe: str, added: int, kinds: set[str]) -> None:
    path = Path(__file__).parents[3] / "examples" / f"{recipe}.yaml"
    given = load([path], ["data.dataset=d"]).config
    check(given)
    assert given.model.with_tokens(32000).vocab_size == 32000 + added
    assert {given.model.mixer_of(layer).kind for layer in range(given.model.layers)} == kinds
