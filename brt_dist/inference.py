"""A trained model in one process: read text, generate, evaluate.

import brt_dist

with brt_dist.load("runs/books") as model:
    print(model.generate("It was a dark", tokens=50).text)
    print(model.evaluate([text]).bits_per_token)
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from hashlib import sha256
from types import TracebackType
from typing import Any, overload

import torch
from torch import Tensor

from brt_dist.config.schema import ModelConfig
from brt_dist.data.in_memory import InMemoryDataset
from brt_dist.data.reader import Documents
from brt_dist.data.tokenizers import Tokenizer, parse_tokenizer
from brt_dist.errors import CheckpointError, DataError
from brt_dist.evaluation.score import Score, score
from brt_dist.export.load import load_weights
from brt_dist.export.open import open_weights
from brt_dist.export.weights import Weights
from brt_dist.generation.choose import Sampling
from brt_dist.generation.decoder import Decoder
from brt_dist.generation.generate import Continuation, generate
from brt_dist.generation.session import Owner, fingerprint
from brt_dist.model.memory import Memory
from brt_dist.model.model import BlockRecurrentModel, full_logits
from brt_dist.parallel.layout import is_joined, single_process


class TrainedModel:
    """Weights in memory, in evaluation mode.  :func:`load` makes one; use it in `with`, or call :meth:`close`.

    Attributes:
        network: the module.
        config: the network's section of the config.
        facts: where the weights come from: step, tokens, evaluations, dataset, as far as it is known.
        where: what they were read from.
    """

    def __init__(
        self,
        network: BlockRecurrentModel,
        tokenizer: Tokenizer | None,
        where: str,
        facts: dict[str, Any],
        stack: ExitStack,
    ) -> None:
        self.network, self.where, self.facts = network, where, facts
        self.config: ModelConfig = network.config
        self._tokenizer, self._stack = tokenizer, stack

    def __enter__(self) -> "TrainedModel":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leave the process group that :func:`load` made, if it made one."""
        self._stack.close()

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    @property
    def has_tokenizer(self) -> bool:
        """Whether the tokenizer is known."""
        return self._tokenizer is not None

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that the model was trained with.

        Raises:
            DataError: it was not found with the weights.
        """
        if self._tokenizer is None:
            raise DataError(
                f"{self.where} has no tokenizer: the run's dataset has moved; give its tokenizer.json "
                "(--tokenizer FILE, or load(..., tokenizer=FILE))"
            )
        return self._tokenizer

    @property
    def owner(self) -> Owner:
        """Whose memory a saved session is."""
        known = None if self._tokenizer is None else sha256(self._tokenizer.file).hexdigest()
        return Owner(fingerprint(self.network), known, self.where)

    def blank_memory(self, streams: int = 1) -> list[Memory]:
        """Memory of each layer before the first document."""
        return self.network.blank_memory(streams)

    @torch.no_grad()
    def read(self, tokens: Tensor, memory: Sequence[Memory], starts: Tensor) -> tuple[Tensor, list[Memory]]:
        """Read one segment, as in training.

        Args:
            tokens: (b, N) int64, N a multiple of the window W.
            memory: of each layer, from the segment before.
            starts: (b, N/W) bool, blocks with which a document starts.

        Returns:
            Logits of the next token (b, N, V), and the new memory.
        """
        logits, after = self.network(tokens.to(self.device), memory, starts.to(self.device))
        return full_logits(logits, self.config.vocab_size or 0), after

    def decoder(self, streams: int = 1) -> Decoder:
        """Streams to read token by token, each of any length."""
        return Decoder(self.network, streams)

    @overload  # a str is a sequence of them too
    def generate(  # type: ignore[overload-overlap]
        self, prompt: str, tokens: int = ..., *, sampling: Sampling | None = ..., stops: Sequence[str] = ...
    ) -> Continuation: ...
    @overload
    def generate(
        self, prompt: Sequence[str], tokens: int = ..., *, sampling: Sampling | None = ..., stops: Sequence[str] = ...
    ) -> list[Continuation]: ...
    def generate(
        self,
        prompt: str | Sequence[str],
        tokens: int = 100,
        *,
        sampling: Sampling | None = None,
        stops: Sequence[str] = (),
        on_text: Callable[[int, str], None] = lambda stream, text: None,
    ) -> Continuation | list[Continuation]:
        """Continue one prompt, or several of different lengths at once.

        Args:
            prompt: not empty.
            tokens: to generate, at most.
            sampling: how tokens are chosen.
            stops: strings that end a continuation.
            on_text: called with the number of the prompt and a piece of its text, as soon as it is certain.

        Raises:
            DataError: a prompt is empty, or the tokenizer is not known.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        encoded = [self.encode(one) for one in prompts]
        found = generate(self.decoder(len(prompts)), encoded, tokens, self.tokenizer, sampling, stops, on_text)
        return found[0] if isinstance(prompt, str) else found

    def evaluate(
        self, documents: Documents | Sequence[str], *, segment: int | None = None, clear_memory: bool = False
    ) -> Score:
        """Loss on whole documents, every token of them predicted but the first.

        Args:
            documents: texts, or tokens to read like those of a `Dataset`.
            segment: tokens read at a time; None: 8 blocks.  The result does not depend on it, unless memory is cleared.
            clear_memory: clear memory at the start of every segment.

        Raises:
            DataError: there is nothing to predict.
        """
        data = documents
        if isinstance(data, Sequence):
            data = InMemoryDataset.of_texts(data, self.tokenizer)
        size = segment or 8 * self.config.window
        return score(self.network, data, segment=size, streams=8, memory_use="cleared" if clear_memory else "carried")

    def encode(self, prompt: str) -> list[int]:
        """Tokens of a prompt.

        Raises:
            DataError: there are none, or one is not in the model's vocabulary.
        """
        ids = [int(token) for token in self.tokenizer.encode(prompt)]
        if not ids:
            raise DataError("the prompt is empty: give at least one token to continue from")
        if max(ids) >= (self.config.vocab_size or 0):
            raise DataError(
                f"the tokenizer produced token {max(ids)}, but {self.where} has {self.config.vocab_size} tokens"
            )
        return ids


def load(
    source: str, step: int | None = None, *, device: str = "auto", tokenizer: str | None = None, verify: bool = True
) -> TrainedModel:
    """Load a trained model, float32.

    Args:
        source: a run directory, a checkpoint, a folder or URL of checkpoints, or an export.
        step: of the checkpoint; None: the newest.
        device: "cpu", "cuda", or "auto": a GPU if there is one.
        tokenizer: its file, if it is not with the weights.
        verify: compare the files with their digests first.

    Raises:
        CheckpointError: there are no weights, or they are damaged.
        ConfigError: the model does not predict the next token.
        DataError: the tokenizer cannot be read.
        PlatformError: the storage does not respond, or there is no GPU.
    """
    with ExitStack() as stack:
        place = torch.device("cpu")
        if not is_joined():
            place = stack.enter_context(single_process(device)).torch
        with open_weights(source, step, verify=verify) as weights:
            weights.model.must_continue_text(weights.where)
            network = load_weights(weights).to(place)
            parsed, where, facts = tokenizer_of(weights, tokenizer), weights.where, weights.facts
        held = stack.pop_all()
    return TrainedModel(network, parsed, where, facts, held)


def tokenizer_of(weights: Weights, file: str | None) -> Tokenizer | None:
    """The tokenizer in `file`, or else the one with the weights, if there is one.

    Raises:
        CheckpointError: the one in `file` has tokens that the model does not have.
        DataError: it cannot be read.
    """
    found = weights.tokenizer if file is None else _file(file)
    if found is None:
        return None
    parsed = parse_tokenizer(found, file or weights.where)
    if file is not None and parsed.vocab_size > (weights.model.vocab_size or 0):
        raise CheckpointError(
            f"{file} has {parsed.vocab_size} tokens, but {weights.where} has {weights.model.vocab_size}"
        )
    return parsed


def _file(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise DataError(f"{path}: cannot read the tokenizer: {error.strerror}") from None
