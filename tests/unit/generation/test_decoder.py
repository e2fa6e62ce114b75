"""Reading token by token gives what training's forward pass gives, whatever pieces a text comes in."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from brt_dist.config.schema import ModelConfig
from brt_dist.errors import CheckpointError, DataError
from brt_dist.generation.decoder import Decoder
from brt_dist.generation.session import Owner, fingerprint, load_memory, save_memory
from brt_dist.kinds import FFNS, MIXERS
from brt_dist.model.model import BlockRecurrentModel, full_logits
from brt_dist.parallel.layout import single_process

WINDOW, LENGTH, STREAMS, VOCABULARY = 8, 44, 3, 50
SIZES: dict[str, Any] = {"layers": 3, "width": 32, "heads": 2, "head_dim": 16, "window": WINDOW, "dropout": 0.1}
RECURRENT: dict[str, Any] = {"kind": "recurrent", "layers": [1], "states": 6, "mlp_width": 48}
KINDS: dict[str, dict[str, Any]] = {
    "window": {"mixers": {"window": {}}},
    "rotary": {"mixers": {"window": {"positions": "rotary"}}},
    "no positions, raw scale": {"mixers": {"window": {"positions": "none", "attention_scale": "raw"}}},
    "skip": {"mixers": {"window": {}, "recurrent": RECURRENT}},
    "single lstm": {"mixers": {"window": {}, "recurrent": RECURRENT | {"cell": "single", "gate": "lstm"}}},
    "dual": {"mixers": {"window": {}, "recurrent": RECURRENT | {"cell": "dual"}}},
    "feedback": {"mixers": {"window": {}, "recurrent": RECURRENT}, "feedback": True},
    "linear": {"mixers": {"linear": {}}},
    "sparse": {
        "mixers": {"window": {"qkv": "multiplicative"}},
        "ffns": {"sparse": {"blocks": 8, "block_size": 8, "rank": 8}},
    },
    "delta": {"mixers": {"delta": {"gate": True}}},
    "gated delta": {"mixers": {"gated_delta": {"chunk": 4}}},
    "memsizer": {"mixers": {"memsizer": {"rows": 6}}},
    "nprf_rpe": {"mixers": {"nprf_rpe": {"features": 6, "reach": 5}}},
    "lstm": {"mixers": {"lstm": {}}},
    "bst": {"mixers": {"bst": {"filter_states": 6}}},
    "bst, last contexts": {"mixers": {"bst": {"contexts": "multi_filter", "context_filters": 5, "filter_states": 6}}},
    "experts": {
        "mixers": {"switchhead": {"experts": 3}},
        "ffns": {"sigma_moe": {"experts": 6, "chosen": 2, "expert_width": 8}},
    },
    "fourier memory": {"mixers": {"fourier_memory": {}}},
    "gelu": {"mixers": {"window": {}}, "ffns": {"gelu": {"width": 64}}},
    "swiglu": {"mixers": {"window": {}, "recurrent": RECURRENT}, "ffns": {"swiglu": {"width": 64}}},
    "hybrid": {"mixers": {"linear": {}, "window": {"layers": [0]}, "recurrent": RECURRENT}},
}


@pytest.fixture(scope="module", autouse=True)
def world_of_one() -> Iterator[None]:
    with single_process():
        yield


def network(kind: str, seed: int = 1) -> BlockRecurrentModel:
    config = ModelConfig.model_validate({**SIZES, "ffns": {"relu": {"width": 64}}, **KINDS[kind]})
    return BlockRecurrentModel(config.model_copy(update={"vocab_size": VOCABULARY}), seed=seed).eval()


def texts() -> Tensor:
    return torch.randint(0, VOCABULARY, (STREAMS, LENGTH), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def trained_on(model: BlockRecurrentModel, tokens: Tensor) -> Tensor:
    """Logits (b, T, V) of the training forward, in segments of two blocks that carry memory."""
    memory, found = model.blank_memory(len(tokens)), []
    padded = torch.nn.functional.pad(tokens, (0, -LENGTH % (2 * WINDOW)))
    for first in range(0, padded.shape[1], 2 * WINDOW):
        starts = torch.tensor([[first == 0, False]] * len(tokens))
        logits, memory = model(padded[:, first : first + 2 * WINDOW], memory, starts)
        found.append(full_logits(logits, VOCABULARY))
    return torch.cat(found, 1)[:, :LENGTH]


def test_every_kind_that_can_continue_text_is_here() -> None:
    models = [ModelConfig.model_validate({**SIZES, **KINDS[kind]}) for kind in KINDS]
    halves = {half.kind for model in models for _, half in model.halves()}
    assert halves == {kind for kind in MIXERS if MIXERS[kind].is_causal} | set(FFNS)


@pytest.mark.parametrize("kind", KINDS)
def test_token_by_token_is_the_training_forward(kind: str) -> None:
    model, tokens = network(kind), texts()
    truth = trained_on(model, tokens)
    decoder = Decoder(model, STREAMS)
    for position in range(LENGTH):
        logits = decoder.feed({stream: [int(tokens[stream, position])] for stream in range(STREAMS)})
        assert (logits - truth[:, position]).abs().max() < 1e-5, position
    assert decoder.read == [LENGTH] * STREAMS


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [0, 1])
def test_pieces_of_any_size_and_streams_at_different_places(kind: str, seed: int) -> None:
    model, tokens, chance = network(kind), texts(), random.Random(seed)
    truth = trained_on(model, tokens)
    decoder, at = Decoder(model, STREAMS), [0] * STREAMS
    while min(at) < LENGTH:
        given = {}
        for stream in chance.sample(range(STREAMS), STREAMS):
            end = min(LENGTH, at[stream] + chance.choice([0, 1, 1, 2, 5, WINDOW, 20]))
            if end > at[stream]:
                given[stream], at[stream] = tokens[stream, at[stream] : end].tolist(), end
        if given:
            expected = torch.stack([truth[stream, at[stream] - 1] for stream in given])
            assert (decoder.feed(given) - expected).abs().max() < 1e-5


def test_copies_go_on_by_themselves() -> None:
    model, tokens = network("skip"), texts()
    decoder = Decoder(model, 1)
    decoder.feed({0: tokens[0, :13].tolist()})
    copies = decoder.copied([0, 0])
    first = copies.feed({0: [1], 1: [2]})
    assert (first[0] - first[1]).abs().max() > 1e-3
    assert torch.allclose(decoder.feed({0: [2]})[0], first[1], atol=1e-5)


@pytest.mark.parametrize("read", [1, 5, WINDOW, WINDOW + 1, 3 * WINDOW, 30])
@pytest.mark.parametrize("kind", ["skip", "feedback", "linear"])
def test_a_saved_memory_continues_as_if_never_saved(tmp_path: Path, kind: str, read: int) -> None:
    model, tokens = network(kind), texts()[0].tolist()
    owner = Owner(fingerprint(model), "abc", "a model")
    straight, saved, loaded = Decoder(model, 1), Decoder(model, 1), Decoder(model, 2)
    straight.feed({0: tokens[:read]})
    saved.feed({0: tokens[:read]})
    save_memory(tmp_path / "memory", saved, 0, tokens[read : read + 1], owner)
    unread = load_memory(tmp_path / "memory", loaded, 1, owner)
    assert unread == tokens[read : read + 1] and loaded.read == [0, read]
    for token in tokens[read:]:
        assert torch.allclose(straight.feed({0: [token]}), loaded.feed({1: [token]}), atol=1e-5)


def test_a_memory_of_something_else_is_refused_by_name(tmp_path: Path) -> None:
    model, other = network("skip"), network("skip", seed=2)
    decoder = Decoder(model, 1)
    decoder.feed({0: [1, 2, 3]})
    path = tmp_path / "memory"
    save_memory(path, decoder, 0, [], Owner(fingerprint(model), "abc", "runs/one"))
    for owner, said in (
        (Owner(fingerprint(other), "abc", "runs/two"), "of another model, runs/one; this one is runs/two"),
        (Owner(fingerprint(model), "def", "runs/one"), "different tokenizer"),
    ):
        with pytest.raises(CheckpointError, match=said):
            load_memory(path, decoder, 0, owner)
    whole = path.read_bytes()
    for damaged in (b"", whole[:100], b"\xff" * 64, whole[:-4], (tmp_path.name + "{}").encode()):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="memory"):
            load_memory(path, decoder, 0, Owner(fingerprint(model), "abc", "runs/one"))
    with pytest.raises(CheckpointError, match="cannot read"):
        load_memory(tmp_path, decoder, 0, Owner("", None, ""))


def test_unknown_tokens_are_refused() -> None:
    decoder = Decoder(network("window"), 1)
    for given in ([], [VOCABULARY], [-1]):
        with pytest.raises(DataError, match="0 to 49"):
            decoder.feed({0: given})


@pytest.mark.parametrize("kind", KINDS)
def test_a_token_costs_the_same_however_long_the_document_is(kind: str) -> None:
    """Counted: matrix products of each token of a block, and bytes kept after it."""
    decoder, costs = Decoder(network(kind), 1), {}
    for blocks in (2, 60):
        read = blocks * WINDOW - decoder.read[0]
        decoder.feed({0: [number % VOCABULARY for number in range(read)]})
        costs[blocks] = []
        for token in range(WINDOW):
            with FlopCounterMode(display=False) as counter:
                decoder.feed({0: [token]})
            costs[blocks].append((counter.get_total_flops(), decoder.carried_bytes()))
    assert costs[2] == costs[60]
    assert all(flops > 0 and kept > 0 for flops, kept in costs[2])
    assert all(len(tokens) <= WINDOW for tokens in decoder._tokens)
