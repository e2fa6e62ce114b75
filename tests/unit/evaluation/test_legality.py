"""Legal predictions and what heads read, in training's evaluation, against a plain loop over whole words."""

import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from benchmarks.models import trained_model
from brt_dist.config.rules import check
from brt_dist.config.schema import Config
from brt_dist.data.in_memory import InMemoryDataset
from brt_dist.errors import ConfigError
from brt_dist.evaluation.evaluate import evaluate
from brt_dist.evaluation.oracle_tally import first_other_text, oracle_of
from brt_dist.evaluation.score import Score, score
from brt_dist.export.formats.hf import refuse_unknown_kinds
from brt_dist.languages import FIRST, LANGUAGES, Words, labels
from brt_dist.model.model import full_logits
from brt_dist.parallel.device import Device
from brt_dist.parallel.layout import Layout, single_process
from brt_dist.planning.flops import forward_flops
from brt_dist.planning.parameters import stage_parameters


@pytest.fixture
def device() -> Iterator[Device]:
    with single_process() as device:
        yield device


def config(oracle: dict[str, object] | None = None, **model: object) -> Config:
    shape = {
        "layers": 1, "width": 24, "heads": 2, "head_dim": 8, "window": 4, "dropout": 0.0, "vocab_size": 256,
        "mixers": {"lstm": {}}, "ffns": {"relu": {"width": 24}}, "objective": "oracle",
        "oracle": {"language": "dyck", "depth": 3, "slots": 2, "decomposition": "latent", **(oracle or {})},
    }  # fmt: skip
    return Config.model_validate(
        {
            "model": shape | model,
            "data": {"dataset": "unused", "segment": 8, "streams": 4},
            "parallel": {"micro_batch": 2},
            "optimizer": {"warmup_steps": 0},
            "run": {"directory": "run", "steps": 1, "precision": "fp32", "seed": 5},
        }
    )


def test_shares_are_those_of_a_plain_loop(device: Device) -> None:
    """Of a model with its first weights, which mostly predicts the token that it has just read."""
    from brt_dist.parallel.engine import build_engine

    given, machine, generator = config(), LANGUAGES["dyck"](2, 3), random.Random(1)
    words = [Words(machine, longest).draw(generator) for longest in (2, 4, 6, 18) * 12]  # some with few predictions
    dataset = InMemoryDataset([np.frombuffer(machine.text(word).encode(), np.uint8) for word in words], 256)
    engine = build_engine(given, Layout.of(given, 0), device)
    try:
        model = trained_model(engine)
        found = evaluate(engine, dataset, 99)
        again = evaluate(engine, dataset, 99)
    finally:
        engine.close()
    assert found == again and found.oracle is not None and found.accuracy is None
    oracle = oracle_of(given.model)
    assert oracle is not None and first_other_text(oracle, dataset) is None
    for segment, streams in ((8, 4), (4, 3), (20, 50)):  # the same, however words are read
        whole = score(model, dataset, segment=segment, streams=streams, oracle=oracle)
        assert whole.oracle == found.oracle and whole.nats == pytest.approx(found.loss * found.tokens, rel=1e-6)
        assert Score.from_json(whole.to_json()).oracle == found.oracle
    assert score(model, dataset, segment=8, streams=4).oracle is None

    heads = model.final_norm.oracle
    assert heads is not None
    counts = {name: [0, 0] for name in ("legal", "legal_words", "state_accuracy", "stack_accuracy")}

    def count(name: str, is_right: bool) -> None:
        counts[name][0] += is_right
        counts[name][1] += 1

    for word in words:
        told = labels(machine, word)
        assert told is not None
        padded = [ord(letter) for letter in machine.text(word)] + [0] * (-len(word) % 4)
        starts = torch.zeros(1, len(padded) // 4, dtype=torch.bool)
        starts[0, 0] = True
        hidden: list[torch.Tensor] = []
        hook = model.final_norm.register_forward_hook(lambda module, given, out, kept=hidden: kept.append(out))
        with torch.no_grad():
            logits = full_logits(model(torch.tensor([padded]), model.blank_memory(1), starts)[0], 256)[0]
            of_state, of_stack = (read[: len(word), 0].argmax(-1) for read in heads(hidden[0]))
        hook.remove()
        allowed = [{machine.letters[s - FIRST] for s in legal if s >= FIRST} for legal in told.legal[2:]]
        legal = [chr(int(p)) in at for p, at in zip(logits[: len(word) - 1].argmax(-1), allowed, strict=False)]
        for is_legal in legal:
            count("legal", is_legal)
        if len(word) > 1:
            count("legal_words", all(legal))
        for place in range(len(word)):
            count("state_accuracy", int(of_state[place]) == told.states[place + 1])
            count("stack_accuracy", of_stack[place].tolist() == [*told.stacks[place + 1], 0, 0][:2])
    for name, (right, among) in counts.items():
        assert among > 40 and getattr(found.oracle, name) == right / among, name
    assert 0 < counts["legal_words"][0] < counts["legal_words"][1]
    assert found.tokens == counts["legal"][1]


def test_documents_that_are_no_words_are_told() -> None:
    oracle = oracle_of(config().model)
    assert oracle is not None and oracle_of(config().model.model_copy(update={"objective": "causal"})) is None
    words, other = [np.frombuffer(text, np.uint8) for text in (b"([])", b"[][]")], np.frombuffer(b"([)]", np.uint8)
    assert first_other_text(oracle, InMemoryDataset(words, 256)) is None
    told = first_other_text(oracle, InMemoryDataset([*words, other], 256))
    assert told is not None and told.startswith("document 2: ") and "not a word of it" in told


@pytest.mark.parametrize("decomposition", ["forced", "latent"])
def test_the_plan_counts_the_heads(device: Device, decomposition: str) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    from brt_dist.model.model import BlockRecurrentModel

    given = config({"decomposition": decomposition})
    model = BlockRecurrentModel(given.model, seed=0)
    planned = sum(matrix.size for matrix in stage_parameters(given, 0))
    assert planned == sum(parameter.numel() for parameter in model.parameters())
    heads = model.final_norm.oracle
    assert heads is not None
    with FlopCounterMode(display=False) as counted:
        heads(torch.zeros(5, 24))
    plain = given.model.model_copy(update={"objective": "causal"})
    assert counted.get_total_flops() == 5 * (forward_flops(given.model) - forward_flops(plain))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"objective": "causal"}, "model.oracle is set, but model.objective=causal trains no heads"),
        (
            {"oracle": {"slots": 24, "decomposition": "forced"}},
            "one channel each; nearest: model.oracle.slots=23",
        ),
        ({"mixers": {"fnet": {}}}, "fnet is not causal"),
    ],
)
def test_rules(change: dict[str, object], said: str) -> None:
    check(config())
    with pytest.raises(ConfigError, match=said):
        check(config(**change))


def test_the_heads_need_whole_segments() -> None:
    split = {"tensor": 2, "sequence_parallel": True, "micro_batch": 2}
    with pytest.raises(ConfigError, match=r"nearest: parallel\.sequence_parallel=false"):
        check(Config.model_validate(config().model_dump() | {"parallel": split}))
    with pytest.raises(ConfigError, match=r"model\.objective=oracle: not in the exported code"):
        refuse_unknown_kinds(config().model)
