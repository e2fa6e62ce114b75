"""The choice of a token, against probabilities worked out by hand, and text that is returned once it is final."""

import math
from collections import Counter

import pytest
import torch

from brt_dist.data.tokenizers import ByteTokenizer
from brt_dist.errors import ConfigError
from brt_dist.generation.choose import Sampling, choose
from brt_dist.generation.text_stream import TextStream

LOGITS = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log()


def shares(sampling: Sampling, logits: torch.Tensor = LOGITS, text: tuple[int, ...] = ()) -> list[float]:
    """How often each token is chosen."""
    rows = 4000
    found = choose(logits.expand(rows, -1), sampling, [text] * rows, [str(row) for row in range(rows)])
    counts = Counter(found)
    return [counts[token] / rows for token in range(logits.shape[1])]


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(), [0.5, 0.25, 0.125, 0.125]),
        (Sampling(temperature=0), [1, 0, 0, 0]),
        (Sampling(temperature=0.5), [16 / 22, 4 / 22, 1 / 22, 1 / 22]),
        (Sampling(top_k=2), [2 / 3, 1 / 3, 0, 0]),
        (Sampling(top_k=9), [0.5, 0.25, 0.125, 0.125]),
        (Sampling(top_p=0.5), [1, 0, 0, 0]),
        (Sampling(top_p=0.6), [2 / 3, 1 / 3, 0, 0]),
        (Sampling(min_p=0.4), [2 / 3, 1 / 3, 0, 0]),
        (Sampling(top_k=3, top_p=0.8), [2 / 3, 1 / 3, 0, 0]),
    ],
)
def test_shares(sampling: Sampling, expected: list[float]) -> None:
    for share, wanted in zip(shares(sampling), expected, strict=True):
        assert abs(share - wanted) < 4 * math.sqrt(wanted * (1 - wanted) / 4000) + 1e-9


def test_repetition_penalty() -> None:
    """A positive logit is divided, a negative one multiplied: both become smaller."""
    logits = torch.tensor([[1.0, -1.0, 0.0]])
    found = shares(Sampling(repetition_penalty=2.0), logits, (0, 1, 0))
    expected = torch.tensor([0.5, -2.0, 0.0]).softmax(0)
    assert all(abs(share - wanted) < 0.04 for share, wanted in zip(found, expected.tolist(), strict=True))


def test_the_seed_decides_and_the_batch_does_not() -> None:
    logits = torch.zeros(1, 1000)
    one = choose(logits, Sampling(seed=1), [()], ["0/5"])
    assert one == choose(logits.expand(3, -1), Sampling(seed=1), [()] * 3, ["9/9", "0/5", "1/5"])[1:2]
    assert one != choose(logits, Sampling(seed=2), [()], ["0/5"])


@pytest.mark.parametrize("wrong", [{"temperature": -1}, {"top_k": 0}, {"top_p": 0}, {"min_p": 2}])
def test_values_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Sampling(**wrong)  # type: ignore[arg-type]


def streamed(text: str | bytes, stops: tuple[str, ...] = ()) -> tuple[list[str], TextStream]:
    stream = TextStream(ByteTokenizer(), b"before ", stops)
    given = [stream.push(byte) for byte in (text.encode() if isinstance(text, str) else text)]
    return [piece for piece in [*given, stream.end()] if piece], stream


def test_characters_are_whole() -> None:
    pieces, stream = streamed("a\u00e9\u65e5\U0001f600!")
    assert pieces == ["a", "\u00e9", "\u65e5", "\U0001f600", "!"] and not stream.is_stopped
    assert "".join(streamed(b"a\xff\xff\xff\xffb\xc3")[0]) == "a\ufffd\ufffd\ufffd\ufffdb\ufffd"


@pytest.mark.parametrize(
    ("text", "stops", "expected", "is_stopped"),
    [
        ("one. two", (". ",), "one", True),
        ("one.", (". ",), "one.", False),
        ("aab", ("ab",), "a", True),
        ("a##b###c", ("###", "zz"), "a##b", True),
        ("xyz", ("yz", "xy"), "", True),
    ],
)
def test_a_stop_string_and_its_beginning_are_held_back(
    text: str, stops: tuple[str, ...], expected: str, is_stopped: bool
) -> None:
    pieces, stream = streamed(text, stops)
    assert ("".join(pieces), stream.is_stopped) == (expected, is_stopped) and stream.text == expected
