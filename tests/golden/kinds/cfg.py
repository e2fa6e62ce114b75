"""Words of bounded context-free languages (arXiv 2112.09174), their states, stacks and legal symbols, and non-words.

Rows are padded with the end symbol, state 1 and an empty stack.  From the end on, the reference calls nothing legal but
the end.  The sizes, or the best fit, show which language it is.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from brt_dist.languages import END, FIRST, START, Blocks, Dyck, Language, Palindromes, Parity
from tests.golden.differences import Differences, differences, scaled

ARRAYS = ("seq", "state", "stack", "legal")


def check(arrays: dict[str, Tensor], entry: dict[str, Any]) -> Differences:
    found = [compared(language, arrays) for language in languages(arrays)]
    return differences(min(found, key=lambda pairs: max(scaled(*pair) for pair in pairs)))


def languages(arrays: dict[str, Tensor]) -> Iterator[Language]:
    slots, symbols = arrays["stack"].shape[2], arrays["legal"].shape[2] - FIRST
    if symbols % 2 == 0:
        yield Dyck(symbols // 2, slots)
    if symbols == 2:
        yield from (Blocks(), Parity())
    if symbols > 1:
        yield Palindromes(symbols - 1, slots, arrays["seq"].shape[1])


def compared(language: Language, arrays: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Pairs (ours, theirs)."""
    rows = [labelled(language, row, arrays) for row in arrays["seq"].tolist()]
    pairs = [
        (torch.stack([row[name] for row in rows]), arrays[name].double()) for name in ("seq", "state", "stack", "legal")
    ]
    if "negative" in arrays:  # one symbol of the word is changed, so it is not a word; rows of -1 are left out
        kept = (arrays["negative"] >= 0).all(1)
        changed = (arrays["negative"] != arrays["seq"]).sum(1)[kept].double()
        words = [word(row) for row in arrays["negative"][kept].tolist()]
        accepted = torch.tensor([float(is_word(language, symbols)) for symbols in words])
        pairs += [(torch.ones(len(changed)).double(), changed), (accepted, torch.zeros(len(accepted)))]
    return [(ours.double(), theirs.double()) for ours, theirs in pairs]


def word(row: list[int]) -> list[int]:
    symbols = row[1:]
    return symbols[: symbols.index(END)] if END in symbols else symbols


def is_word(language: Language, symbols: list[int]) -> bool:
    found = language.run(symbols)
    return found is not None and language.accepts(found[-1])


def labelled(language: Language, row: list[int], arrays: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our labels of a row; -1 everywhere if it is not a word."""
    made = {name: torch.zeros(arrays[name].shape[1:]) for name in ("seq", "state", "stack", "legal")}
    symbols = word(row)
    found = language.run(symbols)
    if row[0] != START or found is None or not language.accepts(found[-1]):
        return {name: tensor - 1 for name, tensor in made.items()}
    made["seq"][1:], made["state"][:] = END, 1
    made["legal"][len(symbols) + 1 :, END] = 1
    for place, at in enumerate(found):
        made["state"][place] = at.state
        made["stack"][place, : len(at.stack)] = torch.tensor(at.stack, dtype=torch.float32)
        if place < len(symbols):
            made["seq"][place + 1] = symbols[place]
            made["legal"][place + 1, language.legal(at)] = 1
    return made
