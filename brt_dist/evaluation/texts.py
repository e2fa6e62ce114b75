"""Counts of the text of a dataset's documents, for measures that do not depend on the tokenizer."""

from dataclasses import dataclass

from brt_dist.data.reader import Documents
from brt_dist.data.tokenizers import Tokenizer


@dataclass(frozen=True)
class TextSize:
    """The size of some text.

    Attributes:
        text_bytes: in UTF-8, without the first token of each document, which is not predicted.
        words: split at white space.
    """

    text_bytes: int
    words: int


def size_of(documents: Documents, tokenizer: Tokenizer) -> TextSize:
    """Decode all documents and count."""
    text_bytes = words = 0
    for number, length in enumerate(documents.lengths.tolist()):
        tokens = documents.tokens(number, 0, length)
        text = tokenizer.decode(tokens)
        words += len(text.split())
        text_bytes += len(text.encode()) - len(tokenizer.decode(tokens[:1]).encode())
    return TextSize(text_bytes, words)
