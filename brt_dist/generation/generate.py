"""Continues texts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from brt_dist.data.tokenizers import Tokenizer
from brt_dist.generation.choose import Sampling, choose
from brt_dist.generation.decoder import Decoder
from brt_dist.generation.text_stream import TextStream


@dataclass(frozen=True)
class Continuation:
    """What was generated after a prompt.

    Attributes:
        text: of it, without a stop string.
        tokens: all that were generated, those of a stop string too.
        ended: "length" if `count` tokens were generated, "stop" if a stop string came.
    """

    text: str
    tokens: list[int]
    ended: Literal["length", "stop"]


def generate(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    count: int,
    tokenizer: Tokenizer,
    sampling: Sampling | None = None,
    stops: Sequence[str] = (),
    on_text: Callable[[int, str], None] = lambda stream, text: None,
) -> list[Continuation]:
    """Continue each stream of a decoder after a prompt.

    Args:
        decoder: one stream for each prompt; afterwards they have read prompt and continuation, but not the last token.
        prompts: tokens, one or more each.  With what a stream has read before, they make one document.
        count: tokens to generate for each, at most.
        tokenizer: of the model.
        sampling: how tokens are chosen.
        stops: strings that end a continuation.
        on_text: called with the number of the stream and a piece of its text, as soon as it is certain.
    """
    sampling = sampling or Sampling()
    texts = [list(prompt) for prompt in prompts]
    made: list[list[int]] = [[] for _ in prompts]
    streams = [TextStream(tokenizer, prompt, stops) for prompt in prompts]
    pending = {stream: list(prompt) for stream, prompt in enumerate(prompts)}
    while count > 0 and pending:
        active = list(pending)
        draws = [f"{stream}/{decoder.read[stream] + len(pending[stream])}" for stream in active]
        logits = decoder.feed(pending)
        chosen = choose(logits, sampling, [texts[stream] for stream in active], draws)
        pending = {}
        for stream, token in zip(active, chosen, strict=True):
            texts[stream].append(token)
            made[stream].append(token)
            if text := streams[stream].push(token):
                on_text(stream, text)
            if not streams[stream].is_stopped and len(made[stream]) < count:
                pending[stream] = [token]
            elif rest := streams[stream].end():
                on_text(stream, rest)
    return [
        Continuation(stream.text, tokens, "stop" if stream.is_stopped else "length")
        for stream, tokens in zip(streams, made, strict=True)
    ]
