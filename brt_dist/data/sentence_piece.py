"""SentencePiece models (the `sentencepiece` library), such as T5's with 32k tokens, which the paper uses.

Normalisation is part of the model, and many models lose text (newlines become spaces, runs of spaces collapse).  The
build reports this before it starts; see `check_round_trip`.
"""

import base64
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from brt_dist.errors import DataError

KIND = "sentencepiece"


class SentencePieceTokenizer:
    """A SentencePiece model.  Adds no token at either end of a text.

    Attributes:
        vocab_size: ids are in [0, vocab_size).
        file: JSON with the model file in base64, so that a tokenizer.json is always JSON.
    """

    kind = KIND

    def __init__(self, model: bytes, origin: str) -> None:
        from sentencepiece import SentencePieceProcessor

        try:
            self._backend = SentencePieceProcessor(model_proto=model)
            self.vocab_size = int(self._backend.get_piece_size())
        except Exception as error:  # the library raises plain RuntimeError, without a reason
            raise DataError(f"{origin}: not a SentencePiece model: {error}") from None
        if self.vocab_size < 1:
            raise DataError(f"{origin}: the vocabulary is empty")
        self.file = wrap(model)

    def encode(self, text: str) -> npt.NDArray[np.uint32]:
        return np.array(self._backend.encode(text, out_type=int), dtype=np.uint32)

    def decode(self, ids: Sequence[int] | npt.NDArray[Any]) -> str:
        return str(self._backend.decode(np.asarray(ids).tolist()))


def wrap(model: bytes) -> bytes:
    """The content of tokenizer.json for a model file."""
    return (json.dumps({"kind": KIND, "model": base64.b64encode(model).decode()}) + "\n").encode()


def unwrap(content: dict[str, Any], origin: str) -> bytes:
    """The model file in a tokenizer.json.

    Raises:
        DataError: there is none.
    """
    try:
        return base64.b64decode(content["model"], validate=True)
    except (KeyError, TypeError, ValueError):
        raise DataError(f"{origin}: contains no SentencePiece model") from None
