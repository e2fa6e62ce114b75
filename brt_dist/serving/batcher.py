"""Continuous batching: one thread reads and generates for all requests at once, block by block.

A request takes a free stream of the decoder.  In each turn of the loop, a stream that still has a prompt reads at most
the rest of its block, and every other one generates a token; so a long prompt delays the others by one block at a time.
"""

import logging
import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from brt_dist.data.tokenizers import Tokenizer
from brt_dist.generation.choose import Sampling, choose
from brt_dist.generation.decoder import Decoder
from brt_dist.generation.text_stream import TextStream
from brt_dist.serving.sessions import Saved

_LOG = logging.getLogger(__name__)
Ended = Literal["length", "stop", "cancelled", "error"]


@dataclass(eq=False)
class Request:
    """One text to continue.

    Attributes:
        prompt: tokens, one or more.
        count: tokens to generate, at most.
        sampling, stops: as for `generate`.
        tell: called in the batcher's thread with each piece of text, and at the end with how it ended.
        saved: the state of the text so far, if the request continues one.
        wants_state: whether `state` is set at the end.
        is_cancelled: set by anyone; the request then ends at the next turn.
        generated: tokens so far.
        state: the state of the text at the end.
    """

    prompt: list[int]
    count: int
    sampling: Sampling
    stops: Sequence[str]
    tell: Callable[[str, Ended | None], None]
    saved: Saved | None = None
    wants_state: bool = False
    is_cancelled: bool = False
    generated: list[int] = field(default_factory=list)
    state: Saved | None = None


class _Running:
    """A request that has a stream."""

    def __init__(self, request: Request, tokenizer: Tokenizer) -> None:
        before = request.saved.unread if request.saved is not None else []
        self.request = request
        self.left = deque([*before, *request.prompt])
        self.seen = list(self.left)
        self.text = TextStream(tokenizer, self.seen, request.stops)


class Batcher:
    """Runs until :meth:`close`.

    Args:
        decoder: its streams are the requests served at a time.
        tokenizer: of the model.
        window: tokens of a block [W].
        waiting: largest number of requests that wait for a stream.
    """

    def __init__(self, decoder: Decoder, tokenizer: Tokenizer, window: int, waiting: int) -> None:
        self._decoder, self._tokenizer, self._window = decoder, tokenizer, window
        self._waiting: queue.Queue[Request | None] = queue.Queue(waiting)
        self._running: dict[int, _Running] = {}
        self._free = list(range(decoder.streams))
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="batcher", daemon=True)
        self._thread.start()
        self.tokens = 0  # generated and read in all

    @property
    def active(self) -> int:
        return len(self._running)

    @property
    def queued(self) -> int:
        return self._waiting.qsize()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def submit(self, request: Request) -> bool:
        """Queue a request; false if too many are already waiting."""
        try:
            self._waiting.put_nowait(request)
        except queue.Full:
            return False
        return True

    def close(self) -> None:
        """End the current requests and stop."""
        self._closing.set()
        self._thread.join()

    # ---- in the thread ---------------------------------------------------------------------------------------

    def _loop(self) -> None:
        while not self._closing.is_set():
            self._admit()
            for stream in [stream for stream, running in self._running.items() if running.request.is_cancelled]:
                self._end(stream, "cancelled")
            if self._running:
                try:
                    self._turn()
                except Exception:
                    _LOG.exception("a turn failed; its requests end with it")
                    for stream in list(self._running):
                        self._end(stream, "error")
        for stream in list(self._running):
            self._end(stream, "cancelled")
        while not self._waiting.empty():
            if (request := self._waiting.get_nowait()) is not None:
                request.tell("", "cancelled")

    def _admit(self) -> None:
        """Give free streams to those that wait; blocks for a moment if there is nothing else to do."""
        while self._free:
            try:
                request = self._waiting.get(timeout=None if self._running else 0.05, block=not self._running)
            except queue.Empty:
                return
            if request is None or request.is_cancelled:
                continue
            stream = self._free.pop()
            saved = request.saved
            if saved is None:
                self._decoder.reset(stream)
            else:
                self._decoder.restore(stream, saved.memory, saved.tokens, saved.read)
            self._running[stream] = _Running(request, self._tokenizer)

    def _turn(self) -> None:
        fed = {stream: self._next_piece(stream, running) for stream, running in self._running.items()}
        logits = self._decoder.feed(fed)
        self.tokens += sum(map(len, fed.values()))
        ready = [(place, stream) for place, stream in enumerate(fed) if not self._running[stream].left]
        for place, stream in ready:
            running = self._running[stream]
            request = running.request
            # the same seed gives the same text as `brt generate`, whatever else is in the batch
            draw = f"0/{self._decoder.read[stream]}"
            (token,) = choose(logits[place : place + 1], request.sampling, [running.seen], [draw])
            request.generated.append(token)
            running.seen.append(token)
            if text := running.text.push(token):
                request.tell(text, None)
            if running.text.is_stopped:
                self._end(stream, "stop")
            elif len(request.generated) >= request.count:
                if rest := running.text.end():
                    request.tell(rest, None)
                self._end(stream, "length")
            else:
                running.left.append(token)

    def _next_piece(self, stream: int, running: _Running) -> list[int]:
        room = self._window - self._decoder.read[stream] % self._window
        return [running.left.popleft() for _ in range(min(room, len(running.left)))]

    def _end(self, stream: int, how: Ended) -> None:
        running = self._running.pop(stream)
        request = running.request
        if request.wants_state and how in ("length", "stop"):
            memory, tokens = self._decoder.state(stream)
            request.state = Saved(memory, tokens, self._decoder.read[stream], request.generated[-1:])
        self._free.append(stream)
        request.tell("", how)
