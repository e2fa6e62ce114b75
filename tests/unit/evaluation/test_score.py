"""Loss on whole documents, against each document read alone in one piece."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from brt_dist.config.schema import ModelConfig
from brt_dist.data.in_memory import InMemoryDataset
from brt_dist.data.subset import FirstDocuments
from brt_dist.data.tokenizers import ByteTokenizer
from brt_dist.errors import ConfigError, DataError
from brt_dist.evaluation.forgetting import parts_of
from brt_dist.evaluation.score import Score, score
from brt_dist.evaluation.texts import size_of
from brt_dist.model.model import BlockRecurrentModel, full_logits
from brt_dist.parallel.layout import single_process

WINDOW, VOCABULARY = 8, 40
LENGTHS = (1, 2, 7, 8, 9, 31, 64, 100)


@pytest.fixture(scope="module", autouse=True)
def world_of_one() -> Iterator[None]:
    with single_process():
        yield


@pytest.fixture(scope="module")
def network() -> BlockRecurrentModel:
    mixers: dict[str, Any] = {"window": {}, "recurrent": {"layers": [1], "states": 4}}
    sizes = {"layers": 2, "width": 16, "heads": 2, "head_dim": 8, "window": WINDOW, "vocab_size": VOCABULARY}
    config = ModelConfig.model_validate({**sizes, "mixers": mixers, "ffns": {"relu": {"width": 32}}})
    return BlockRecurrentModel(config, seed=3).eval()


@pytest.fixture(scope="module")
def documents() -> InMemoryDataset:
    random = np.random.default_rng(0)
    return InMemoryDataset([random.integers(0, VOCABULARY, length) for length in LENGTHS], VOCABULARY)


@torch.no_grad()
def alone(network: BlockRecurrentModel, documents: InMemoryDataset, cleared_every: int | None = None) -> list[float]:
    """Nats of each document, each read as one segment, in float64 from the logits on."""
    found = []
    for number, length in enumerate(LENGTHS):
        ids = torch.from_numpy(documents.tokens(number, 0, length).astype(np.int64))
        padded = torch.nn.functional.pad(ids, (0, -length % WINDOW))[None]
        starts = torch.zeros(1, padded.shape[1] // WINDOW, dtype=torch.bool)
        starts[0, :: (cleared_every or padded.shape[1]) // WINDOW] = True
        logits, _ = network(padded, network.blank_memory(1), starts)
        scores = full_logits(logits, VOCABULARY)[0, : length - 1].double().log_softmax(-1)
        found.append(-float(scores.gather(1, ids[1:, None]).sum()))
    return found


@pytest.mark.parametrize("segment", [WINDOW, 3 * WINDOW, 20 * WINDOW])
@pytest.mark.parametrize("streams", [1, 3, 50])
def test_the_same_for_any_segment_and_batch(
    network: BlockRecurrentModel, documents: InMemoryDataset, segment: int, streams: int
) -> None:
    told: list[int] = []
    found = score(network, documents, segment=segment, streams=streams, on_tokens=told.append)
    truth = alone(network, documents)
    assert found.document_tokens.tolist() == [length - 1 for length in LENGTHS]
    assert sum(told) == found.tokens == sum(LENGTHS) - len(LENGTHS)
    assert found.document_nats == pytest.approx(truth, abs=1e-4)
    assert found.bits_per_token == pytest.approx(sum(truth) / found.tokens / math.log(2), abs=1e-6)
    assert sum(p.tokens for p in found.positions) == found.tokens
    assert sum(p.tokens * p.loss for p in found.positions) == pytest.approx(found.nats, rel=1e-9)


def test_cleared_memory_begins_anew_in_every_segment(network: BlockRecurrentModel, documents: InMemoryDataset) -> None:
    """One document at a time, so that segments begin where documents do."""
    for number, length in enumerate(LENGTHS[4:], 4):
        one = InMemoryDataset([documents.tokens(number, 0, length)], VOCABULARY)
        found = score(network, one, segment=2 * WINDOW, streams=1, memory_use="cleared")
        assert found.nats == pytest.approx(alone(network, documents, cleared_every=2 * WINDOW)[number], abs=1e-4)


def test_one_part_of_memory_is_cleared(network: BlockRecurrentModel, documents: InMemoryDataset) -> None:
    """Against the same reading with the part replaced by hand; both parts together are memory cleared."""
    assert parts_of(network.config) == ["state", "cache"]
    ids = torch.from_numpy(documents.tokens(7, 0, 96).astype(np.int64))[None]
    one = InMemoryDataset([ids[0].numpy()], VOCABULARY)
    for part, names in (("state", ("state",)), ("cache", ("keys", "values"))):
        memory, nats, starts = network.blank_memory(1), 0.0, torch.tensor([[True, False]])
        for first in range(0, 96, 2 * WINDOW):
            with torch.no_grad():
                logits, memory = network(ids[:, first : first + 2 * WINDOW], memory, starts)
            scores = full_logits(logits, VOCABULARY)[0].double().log_softmax(-1)
            target = ids[0, first + 1 : first + 1 + 2 * WINDOW]
            nats -= float(scores[: len(target)].gather(1, target[:, None]).sum())
            starts = torch.tensor([[False, False]])
            for layer, carried in zip(network.layers, memory, strict=True):
                for name in set(names) & set(carried):
                    initial = layer.mixer.cell.initial_state if name == "state" else torch.zeros(())  # type: ignore[union-attr]
                    carried[name] = initial.detach().expand_as(carried[name])
        found = score(network, one, segment=2 * WINDOW, streams=1, memory_use=f"{part} cleared")  # type: ignore[arg-type]
        assert found.nats == pytest.approx(nats, abs=1e-4)


def test_measures() -> None:
    found = Score(np.array([10.0, 30.0]), np.array([10, 20]), ())
    assert found.bits_per_token == pytest.approx(40 / 30 / math.log(2))
    assert found.bits_per_byte(80) == pytest.approx(0.5 / math.log(2))
    assert found.word_perplexity(8) == pytest.approx(math.exp(5)) and found.word_perplexity(0.01) == math.inf  # type: ignore[arg-type]
    # residuals of the ratio 4/3: -10/3 and 10/3
    assert found.standard_error == pytest.approx(math.sqrt(2 * 2 * (10 / 3) ** 2) / 30 / math.log(2))
    assert Score(np.array([1.0]), np.array([1]), ()).standard_error is None


def test_text_sizes() -> None:
    texts = ["one two  three\n", "\u00e9t\u00e9", ""]
    size = size_of(InMemoryDataset.of_texts(texts, ByteTokenizer()), ByteTokenizer())
    assert size.words == 4
    assert size.text_bytes == 14 + 5 - 3  # the first token of the second document is only half a character: 3 bytes


def test_what_cannot_be_measured_is_refused(network: BlockRecurrentModel, documents: InMemoryDataset) -> None:
    with pytest.raises(ConfigError, match="nearest: 16"):
        score(network, documents, segment=18, streams=1)
    with pytest.raises(DataError, match="two tokens"):
        score(network, FirstDocuments(documents, 1), segment=8, streams=1)
