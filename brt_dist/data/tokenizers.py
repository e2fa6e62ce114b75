"""Tokenizers: text to ids and back.  Every dataset contains the file of its tokenizer and records its sha256.

kind "bytes": the 256 values of a byte of UTF-8.  kind "huggingface": any file of Hugging Face `tokenizers`, among
them the byte-level BPE that `train_bpe` makes from the corpus.  kind "sentencepiece": a model file of SentencePiece.
Special tokens are neither added nor recognised: the stream schedule knows where documents begin, and text is only text.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from brt_dist.data.tokenizer_place import tokenizer_file
from brt_dist.errors import DataError
from brt_dist.reading import parse_json, read_bytes

BYTES_FILE = b'{"kind": "bytes", "vocab_size": 256}\n'
PIECE = 1 << 17  # characters encoded at once, which bounds the memory that `tokenizers` takes per document
_CUT = re.compile(r"(?<=\S)\n")  # a line end after a visible character: no byte-level BPE token crosses its beginning

Ids = npt.NDArray[np.uint32]


class Tokenizer(Protocol):
    """What the pipeline needs from a tokenizer.

    Attributes:
        kind: "bytes", "huggingface" or "sentencepiece".
        vocab_size: ids are in [0, vocab_size).
        file: content of its file.
    """

    kind: str
    vocab_size: int
    file: bytes

    def encode(self, text: str) -> Ids:
        """Ids (T,) of a text."""
        ...

    def decode(self, ids: Sequence[int] | npt.NDArray[Any]) -> str:
        """The text of ids; invalid UTF-8 (such as a character that was cut) becomes U+FFFD."""
        ...


class ByteTokenizer:
    """The bytes of the UTF-8 text are the ids."""

    kind = "bytes"
    vocab_size = 256
    file = BYTES_FILE

    def encode(self, text: str) -> Ids:
        return np.frombuffer(text.encode(), dtype=np.uint8).astype(np.uint32)

    def decode(self, ids: Sequence[int] | npt.NDArray[Any]) -> str:
        return bytes(np.asarray(ids).astype(np.uint8)).decode(errors="replace")


class HuggingFaceTokenizer:
    """A file of Hugging Face `tokenizers`.

    Long texts are encoded piece by piece if that gives the same ids; `cuts` says whether it does.  It is determined
    with the byte-level alphabet when the file is loaded (a tokenizer that marks the beginning of a text, or joins line
    ends to what precedes them, gets whole documents).
    """

    kind = "huggingface"

    def __init__(self, file: bytes, origin: str) -> None:
        from tokenizers import Tokenizer as Backend

        try:
            self._backend = Backend.from_buffer(file)
        except Exception as error:  # the library raises plain Exception
            raise DataError(f"{origin}: not a Hugging Face tokenizer file: {error}") from None
        self.file = file
        self._backend.no_truncation()
        self._backend.no_padding()
        self._backend.encode_special_tokens = True  # "<|endoftext|>" in a text is text
        self.vocab_size = max(self._backend.get_vocab().values(), default=-1) + 1
        if self.vocab_size < 1:
            raise DataError(f"{origin}: the vocabulary is empty")
        self.cuts = all(self._encode([text]) == self._encode(pieces(text, 1)) for text in _CUT_PROBES)

    def encode(self, text: str) -> Ids:
        return np.array(self._encode(pieces(text, PIECE) if self.cuts else [text]), dtype=np.uint32)

    def decode(self, ids: Sequence[int] | npt.NDArray[Any]) -> str:
        return str(self._backend.decode(np.asarray(ids).tolist(), skip_special_tokens=False))

    def _encode(self, texts: Iterable[str]) -> list[int]:
        # The "fast" batch call leaves out character offsets.
        encode = self._backend.encode_batch_fast
        return [id for text in texts for id in encode([text], add_special_tokens=False)[0].ids]


_CUT_PROBES = (
    "Enter HAMLET.\nTo be, or not to be\nthat is (the question)\n  Whether 'tis\n\n\tnobler!\nIn the mind;\n12\n34\n",
    "def f(x):\n    return {\n        'a': [1,\n  2]}\n\n\n# end\r\nx = 1\r\n",
    "é\nü…\n日本\n語。\n—\n\u00a0x\n\u3000y\n",
)


def load_tokenizer(path: Path) -> Tokenizer:
    """Load a tokenizer from a file, a folder that holds it, or OWNER/NAME on Hugging Face's hub.

    Raises:
        DataError: the file is missing or not a tokenizer.
    """
    path = tokenizer_file(path)
    try:
        return parse_tokenizer(read_bytes(path), str(path))
    except OSError as error:
        raise DataError(f"{path}: cannot read the tokenizer: {error.strerror}") from None
    except ValueError as error:
        raise DataError(f"{path}: cannot read the tokenizer: {error}") from None


def parse_tokenizer(file: bytes, origin: str) -> Tokenizer:
    """The tokenizer of the bytes of a file: a tokenizer.json or a SentencePiece model."""
    from brt_dist.data.sentence_piece import KIND, SentencePieceTokenizer, unwrap

    try:
        content = parse_json(file)
    except ValueError as error:
        if origin.endswith(".model"):
            return SentencePieceTokenizer(file, origin)
        raise DataError(
            f"{origin}: no tokenizer.json (it is not JSON: {error}); a SentencePiece model must be named NAME.model"
        ) from None
    if isinstance(content, dict) and content.get("kind") == "bytes":
        return ByteTokenizer()
    if isinstance(content, dict) and content.get("kind") == KIND:
        return SentencePieceTokenizer(unwrap(content, origin), origin)
    return HuggingFaceTokenizer(file, origin)


def digest(tokenizer: Tokenizer) -> str:
    """sha256 of the tokenizer's file."""
    return hashlib.sha256(tokenizer.file).hexdigest()


def pieces(text: str, size: int) -> Iterator[str]:
    """Split text at the first suitable place after every `size` characters; joined, the pieces are the text."""
    begin = 0
    while len(text) - begin > size and (cut := _CUT.search(text, begin + size)):
        yield text[begin : cut.start()]
        begin = cut.start()
    yield text[begin:]


def bpe_size(spec: str) -> int | None:
    """The vocabulary size in a specification such as "bpe:4096"; None for other specifications.

    Raises:
        DataError: the size is invalid.
    """
    if not spec.startswith("bpe:"):
        return None
    try:
        size = int(spec.removeprefix("bpe:"))
    except ValueError:
        size = 0
    if not 256 < size <= 1 << 24:
        raise DataError(f"tokenizer {spec!r}: the size must be a number above 256 (all bytes), for example bpe:4096")
    return size


def train_bpe(texts: Iterable[str], vocab_size: int) -> bytes:
    """Train a byte-level BPE; returns its file.  The same texts give the same bytes, with any number of threads."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, pre_tokenizers, trainers

    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        show_progress=False,
        special_tokens=[],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    backend.train_from_iterator((piece for text in texts for piece in pieces(text, PIECE)), trainer)
    return (str(backend.to_str(pretty=True)) + "\n").encode()


def check_round_trip(tokenizer: Tokenizer, text: str, place: str) -> None:
    """Check that a text survives encoding and decoding.

    Raises:
        DataError: it does not, or an id is outside the vocabulary.
    """
    if loss := lost_text(tokenizer, text, place):
        raise DataError(f"{loss}; accept that with --lossy allow, or use bytes or bpe:SIZE, which are lossless")


def lost_text(tokenizer: Tokenizer, text: str, place: str) -> str | None:
    """Where a text first changes in encoding and decoding, in words; None if it survives.

    Raises:
        DataError: an id is outside the vocabulary.
    """
    ids = tokenizer.encode(text)
    if ids.size and int(ids.max()) >= tokenizer.vocab_size:
        raise DataError(f"{place}: id {int(ids.max())} is outside the tokenizer's vocabulary of {tokenizer.vocab_size}")
    back = tokenizer.decode(ids)
    if back == text:
        return None
    at = next((i for i, (a, b) in enumerate(zip(text, back, strict=False)) if a != b), min(len(text), len(back)))
    return (
        f"{place}: the tokenizer does not preserve this text: {text[at : at + 20]!r} became {back[at : at + 20]!r} "
        f"at character {at}"
    )
