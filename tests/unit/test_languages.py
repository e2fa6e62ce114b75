"""Bounded context-free languages: machines against independent definitions, and words that are equally likely."""

import json
import random
import re
from collections import Counter
from itertools import product
from pathlib import Path

import pytest
from click.testing import CliRunner

from brt_dist.errors import DataError
from brt_dist.languages import END, FIRST, LANGUAGES, Language, Words, labels, legal_share
from launch.cli import brt


def is_dyck(text: str) -> bool:
    depth = 0
    for letter in text:
        depth += 1 if letter in "([" else -1
        if depth > 3:
            return False
    while "()" in text or "[]" in text:
        text = text.replace("()", "").replace("[]", "")
    return not text


def is_blocks(text: str) -> bool:
    runs = re.findall(r"(a+)(b+)", text)
    return "".join(a + b for a, b in runs) == text and all(len(a) == len(b) for a, b in runs)


def is_palindromes(text: str, blocks: int = 0) -> bool:
    if not text:
        return 1 <= blocks <= 2
    return any(
        text[size] == "c" and text[size + 1 : 2 * size + 1] == text[:size][::-1] and "c" not in text[:size]
        and is_palindromes(text[2 * size + 1 :], blocks + 1)
        for size in range(4)
        if len(text) > 2 * size
    )  # fmt: skip


DEFINITIONS = {
    "dyck": is_dyck,
    "anbn": is_blocks,
    "parity": lambda text: text.count("0") % 2 == 0,
    "palindrome": is_palindromes,
}


def language(name: str) -> Language:
    return LANGUAGES[name](2, 3)


@pytest.mark.parametrize("name", DEFINITIONS)
def test_the_machine_accepts_what_the_definition_does(name: str) -> None:
    machine, longest = language(name), 6
    symbols = range(FIRST, FIRST + len(machine.letters))
    words = Words(machine, longest)
    for length in range(1, longest + 1):
        found = [word for word in product(symbols, repeat=length) if labels(machine, word) is not None]
        expected = [word for word in product(symbols, repeat=length) if DEFINITIONS[name](machine.text(word))]
        assert found == expected
        assert words.by_length[length - 1] == len(expected)


@pytest.mark.parametrize("name", DEFINITIONS)
def test_a_symbol_is_legal_if_some_word_goes_on_with_it(name: str) -> None:
    machine = language(name)
    words = {tuple(word) for length in range(1, 9) for word in product(range(FIRST, FIRST + len(machine.letters)),
             repeat=length) if DEFINITIONS[name](machine.text(word))}  # fmt: skip
    for word in sorted(words)[:: max(1, len(words) // 40)]:
        found = labels(machine, word)
        assert found is not None
        for place in range(min(len(word), 3)):
            after = {other[place] for other in words if len(other) > place and other[:place] == word[:place]}
            ends = {END} if word[:place] in words or (place == 0 and found.legal[1][:1] == [END]) else set()
            assert set(found.legal[place + 1]) == after | ends
        assert len(found.symbols) == len(found.states) == len(found.stacks) == len(found.legal) == len(word) + 2


def test_all_words_are_equally_likely_and_every_depth_is_reached() -> None:
    words, generator = Words(language("dyck"), 4), random.Random(3)
    total = sum(words.by_length)
    drawn = Counter(tuple(words.draw(generator)) for _ in range(100 * total))
    assert len(drawn) == total
    spread = sum((count - 100) ** 2 / 100 for count in drawn.values())
    assert spread < total + 5 * (2 * total) ** 0.5  # chi squared
    deep = Words(LANGUAGES["dyck"](2, 4), 24)
    depths = [max(map(len, labels(deep.language, deep.draw(generator)).stacks)) for _ in range(200)]  # type: ignore[union-attr]
    assert set(depths) >= {3, 4}


def test_the_metric_counts_legal_predictions() -> None:
    machine = language("dyck")
    word = [2, 3, 5, 4]  # ( [ ] )
    assert legal_share(machine, word, [*word, END]) == 1.0
    assert legal_share(machine, word, [3, 4, 5, 4, END]) == 1.0  # other words continue like that
    assert legal_share(machine, word, [4, 5, 5, 4, END]) == 0.6
    with pytest.raises(ValueError, match="2 predictions for a word of 4 symbols"):
        legal_share(machine, word, [2, 3])


def test_the_command_writes_a_corpus_that_is_the_same_each_time(tmp_path: Path) -> None:
    command = ["data", "corpus", "cfg", "--language", "palindrome", "--words", "50", "--held-out", "7", "--json"]
    for folder in ("one", "two"):
        done = CliRunner().invoke(brt, [*command, "--out", str(tmp_path / folder)])
        assert done.exit_code == 0, done.output
    files = [(tmp_path / folder / part / "words.jsonl").read_text() for part in ("train", "validation")
             for folder in ("one", "two")]  # fmt: skip
    assert files[0] == files[1] and files[2] == files[3]
    train, held = ([json.loads(line)["text"] for line in files[i].splitlines()] for i in (0, 2))
    assert len(train) == 50 and len(set(held)) == 7 and not set(train) & set(held)
    assert all(DEFINITIONS["parity"]("") and "c" in text for text in train)


def test_too_few_words_are_refused(tmp_path: Path) -> None:
    command = [
        "data",
        "corpus",
        "cfg",
        "--language",
        "dyck",
        "--types",
        "1",
        "--length",
        "4",
        "--out",
        str(tmp_path / "c"),
    ]
    done = CliRunner().invoke(brt, command)
    assert done.exit_code != 0
    said = "dyck has 3 words of at most 4 symbols, too few to hold out 1000; nearest: --held-out 1"
    assert isinstance(done.exception, DataError) and str(done.exception) == said
