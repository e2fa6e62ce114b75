"""Generates text during training, in any layout.

A rank that holds a whole model, or its tensor parallel part of one, reads token by token (:class:`Decoder`).  With a
pipeline, ZeRO-3 or sequence parallel every token runs the whole segment again, so that the pipeline and its shapes stay
those of training; that is slow, and meant for occasional samples.  All text is in one segment, from blank memory.
"""

from collections.abc import Callable
from typing import Any, ClassVar, Protocol, cast

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor

from brt_dist.config.schema import Config
from brt_dist.generation.decoder import Decoder
from brt_dist.model.model import full_logits
from brt_dist.model.parameters import seeded_generator
from brt_dist.parallel.engine import Engine
from brt_dist.parallel.micro_batches import StepInput
from brt_dist.parallel.pipeline import WholeModel
from brt_dist.parallel.step_input import in_rows

Int64Array = npt.NDArray[np.int64]


class NextLogits:
    """Observer of an evaluation step (see `Engine`) that keeps the logits at one position."""

    wants_logits: ClassVar[bool] = True

    def __init__(self, position: int, vocab_size: int) -> None:
        self._position, self._vocab_size = position, vocab_size
        self.found: list[Tensor] = []  # for each micro-batch (b, V)

    def __call__(self, micro_batch: int, scores: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        here = scores[self._position : self._position + 1]
        self.found.append(full_logits(here, self._vocab_size)[:, 0].double().cpu())
        return scores.new_zeros(())


def sample(
    engine: Engine,
    prompts: Int64Array,
    count: int,
    *,
    temperature: float = 1.0,
    seed: int = 0,
    between: Callable[[int], None] = lambda number: None,
) -> Int64Array:
    """Generate tokens after prompts.  Collective.

    Args:
        engine: the model.
        prompts: (B, P) int64, the same on all ranks.
        count: tokens to generate.
        temperature: of the sampling; 0: take the most likely token.
        seed: the same weights and seed give the same text in any layout, except where rounding decides between tokens
            of nearly equal probability.
        between: called on all ranks before each token with its number, from 1; what it raises ends the sampling.

    Returns:
        Prompts and generated tokens, (B, P + count).

    Raises:
        ValueError: there is not one prompt for each stream, or prompt and tokens exceed a segment.
    """
    config, layout = engine.config, engine.layout
    streams, segment = config.data.streams, config.data.segment
    begun = prompts.shape[1]
    if len(prompts) != streams or not 0 < begun <= begun + count <= segment:
        raise ValueError(
            f"prompts of shape {prompts.shape} and {count} tokens: need {streams} prompts and at most {segment} tokens"
        )
    rows = list(layout.local_streams)
    tokens = np.zeros((streams, segment), np.int64)
    tokens[:, :begun] = prompts
    reader: _Reader = _TokenByToken(engine) if reads_token_by_token(config) else _WholeSegments(engine)
    for end in range(begun, begun + count):
        between(end - begun + 1)
        logits = reader.next(tokens[rows], end)
        chosen = torch.zeros(streams, dtype=torch.int64)
        if logits is not None:
            uniform = torch.rand(streams, generator=seeded_generator(f"sample/{seed}/{end}"), dtype=torch.float64)
            chosen[rows] = _choose(logits, uniform[rows], temperature)
        chosen = chosen.to(engine.device.torch)
        dist.all_reduce(chosen)
        tokens[:, end] = (chosen // layout.tensor).cpu().numpy()
    return tokens[:, : begun + count]


def reads_token_by_token(config: Config) -> bool:
    """Whether a rank can read a token alone: it has all layers, whole weights, and no split sequence."""
    parallel = config.parallel
    is_split = parallel.sequence_parallel and parallel.tensor > 1
    return parallel.pipeline == 1 and parallel.zero_stage < 3 and not is_split


class _Reader(Protocol):
    """Reads the streams of this rank."""

    def next(self, tokens: Int64Array, end: int) -> Tensor | None:
        """Logits of the token after the first `end` of tokens (b, N), (b, V) float64; None on ranks without logits."""
        ...


class _TokenByToken:
    def __init__(self, engine: Engine) -> None:
        stage = cast(WholeModel, engine.stage)
        stage.eval()
        self._streams = len(engine.layout.local_streams)
        self._decoder = Decoder(stage.model, self._streams)

    def next(self, tokens: Int64Array, end: int) -> Tensor | None:
        if not self._streams:
            return None
        new = {stream: tokens[stream, self._decoder.read[stream] : end].tolist() for stream in range(self._streams)}
        return self._decoder.feed(new).double().cpu()


class _WholeSegments:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        config = engine.config
        self._starts = torch.zeros(
            len(engine.layout.rows), config.data.segment // config.model.window, dtype=torch.bool
        )
        self._starts[:, 0] = True

    def next(self, tokens: Int64Array, end: int) -> Tensor | None:
        engine = self._engine
        watched = NextLogits(end - 1, engine.config.model.vocab_size or 0)
        with engine.evaluation_memory() as memory:
            engine.evaluate_step(_step(engine, in_rows(tokens, engine.layout), self._starts), memory, watched)
        return torch.cat(watched.found)[: len(tokens)] if watched.found else None  # on the last stage


def _choose(logits: Tensor, uniform: Tensor, temperature: float) -> Tensor:
    """A token for each row of logits (b, V), where the sum of probabilities passes `uniform` (b,)."""
    if temperature == 0:
        return logits.argmax(-1)
    sums = (logits / temperature).softmax(-1).cumsum(-1)
    return (
        torch.searchsorted(sums, uniform[:, None] * sums[:, -1:], right=True).squeeze(1).clamp_max(logits.shape[1] - 1)
    )


def _step(engine: Engine, tokens: Int64Array, starts: Tensor) -> StepInput:
    layout, device = engine.layout, engine.device.torch
    reads = layout.is_first_stage or layout.is_last_stage
    read: dict[str, Any] = dict.fromkeys(("tokens", "target", "mask"))
    if reads:
        ids = torch.from_numpy(tokens).to(device)
        read = {"tokens": ids, "target": ids, "mask": torch.ones_like(ids, dtype=torch.bool)}
    return StepInput(number=1, starts=starts.to(device), loss_tokens=tokens.size * layout.data, **read)
