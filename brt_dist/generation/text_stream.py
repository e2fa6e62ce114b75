"""Text from tokens that arrive one at a time."""

from collections.abc import Sequence

from brt_dist.data.tokenizers import Tokenizer

_CONTEXT = 8  # tokens before the new ones: some tokenizers drop a space at the beginning of what they decode
_CUT = "\N{REPLACEMENT CHARACTER}"  # how an incomplete character decodes
_LONGEST = 4  # most tokens that a character may take; more is not UTF-8


class TextStream:
    """Returns text as soon as it is final: no half characters, and nothing that may become part of a stop string.

    Args:
        tokenizer: of the tokens.
        before: tokens before the first; their text is not returned.
        stops: strings that end the text; they are not part of it.

    Attributes:
        text: returned so far.
        is_stopped: whether a stop string came.
    """

    def __init__(self, tokenizer: Tokenizer, before: Sequence[int] = (), stops: Sequence[str] = ()) -> None:
        self._tokenizer, self._stops = tokenizer, [stop for stop in stops if stop]
        self._context, self._new = list(before[-_CONTEXT:]), list[int]()
        self._held = ""
        self.text, self.is_stopped = "", False

    def push(self, token: int) -> str:
        """The text that became final with one more token; may be empty."""
        if self.is_stopped:
            return ""
        self._new.append(token)
        if self._decoded().endswith(_CUT) and len(self._new) < _LONGEST:
            return ""
        return self._give(self._flush(), final=False)

    def end(self) -> str:
        """The text that was held back, when no more tokens come."""
        return "" if self.is_stopped else self._give(self._flush(), final=True)

    def _decoded(self) -> str:
        """Text of the new tokens."""
        known = self._tokenizer.decode(self._context)
        return self._tokenizer.decode([*self._context, *self._new])[len(known) :]

    def _flush(self) -> str:
        text = self._decoded() if self._new else ""
        self._context, self._new = [*self._context, *self._new][-_CONTEXT:], []
        return text

    def _give(self, text: str, final: bool) -> str:
        text, self._held = self._held + text, ""
        ends = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if ends:
            text, self.is_stopped = text[: min(ends)], True
        elif not final:
            hold = max((self._beginning_of(stop, text) for stop in self._stops), default=0)
            text, self._held = text[: len(text) - hold], text[len(text) - hold :]
        self.text += text
        return text

    @staticmethod
    def _beginning_of(stop: str, text: str) -> int:
        """Length of the longest end of `text` that is a beginning of `stop`."""
        return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)
