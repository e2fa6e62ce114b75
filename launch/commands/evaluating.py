"""What `brt eval` does: opens the text and reads it, in this process or on the ranks of a layout."""

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brt_dist.config.loading import dump, load
from brt_dist.config.rules import check
from brt_dist.config.schema import Config, ModelConfig
from brt_dist.data.dataset import Dataset
from brt_dist.data.file_cache import CacheSettings, default_directory
from brt_dist.data.format import DATASET_FILE
from brt_dist.data.in_memory import InMemoryDataset
from brt_dist.data.subset import FirstDocuments
from brt_dist.errors import DataError
from brt_dist.evaluation.forgetting import passes
from brt_dist.evaluation.oracle_tally import first_other_text, oracle_of
from brt_dist.evaluation.score import one_pass, score
from brt_dist.evaluation.texts import size_of
from brt_dist.files import is_url
from launch.views.evaluated import Evaluated
from pipelines.console import console
from pipelines.sources import Document, open_sources, read_units

if TYPE_CHECKING:
    from brt_dist.data.reader import Documents
    from brt_dist.data.tokenizers import Tokenizer

_BLOCKS = 8  # default length of a segment; the result with memory carried does not depend on it


@dataclass(frozen=True)
class Wanted:
    """What the user asked for; see the options of `brt eval`."""

    source: str
    step: int | None
    tokenizer: str | None
    device: str
    places: tuple[str, ...]
    documents: int | None
    segment: int | None
    streams: int
    cleared: bool
    parts: bool
    ray_address: str | None = None


@dataclass(frozen=True)
class Measured:
    """What was measured, and on which model."""

    facts: dict[str, Any]
    results: list[Evaluated]


def in_this_process(wanted: Wanted) -> Measured:
    """Load the model and read the text."""
    from brt_dist import inference

    with inference.load(wanted.source, wanted.step, device=wanted.device, tokenizer=wanted.tokenizer) as model:
        tokenizer = model.tokenizer if model.has_tokenizer else None
        segment, todo = _segment(wanted, model.config), passes(model.config, cleared=wanted.cleared, parts=wanted.parts)
        oracle, found = oracle_of(model.config), []
        for place in wanted.places:
            data = _first(_open(place, model.config, tokenizer, lambda: model.tokenizer), wanted.documents)
            unjudged, began, scores = None if oracle is None else first_other_text(oracle, data), time.monotonic(), {}
            for how in todo:
                with _progress(f"{place}, {how.name}", _targets(data)) as advance:
                    scores[how.name] = score(
                        model.network,
                        data,
                        segment=segment,
                        streams=wanted.streams,
                        memory_use=how.use,
                        layers=how.layers,
                        watch=wanted.parts and how.use == "carried",
                        oracle=None if unjudged else oracle,
                        on_tokens=advance,
                    )
            found.append(_evaluated(place, data, tokenizer, scores, time.monotonic() - began, unjudged))
        return Measured(_facts(wanted, model.where, model.facts, model.config), found)


def in_layout(wanted: Wanted, settings: Sequence[str]) -> Measured:
    """Start the ranks of a layout, on this node or on a Ray cluster; they load the model and read the text.

    Raises:
        ConfigError: the layout does not suit the model.
    """
    from brt_dist.eval_worker import EvaluationRequest
    from brt_dist.export.open import open_weights
    from brt_dist.inference import tokenizer_of
    from launch.nodes.evaluation import score_on_ranks

    # other nodes see the working folder, but not this node's temporary folder
    shared = None if wanted.ray_address is None else Path.cwd()
    with (
        open_weights(wanted.source, wanted.step, verify=False) as weights,
        tempfile.TemporaryDirectory(prefix=".brt-eval-", dir=shared) as folder,
    ):
        weights.model.must_continue_text(weights.where)
        config, tokenizer = _config(wanted, weights.model, settings), tokenizer_of(weights, wanted.tokenizer)
        check(config)

        def needed() -> "Tokenizer":
            if tokenizer is None:
                raise DataError(f"{weights.where} has no tokenizer; give its tokenizer.json (--tokenizer FILE)")
            return tokenizer

        datasets, places = [], []
        for number, given in enumerate(wanted.places):
            data, place = _open(given, weights.model, tokenizer, needed), given
            one_pass(data, config.data.segment, config.data.streams, config.model.window)  # can it be read at all?
            if isinstance(data, InMemoryDataset):
                place = str(Path(folder) / f"{number}.npz")
                data.save(Path(place))
            datasets.append(_first(data, wanted.documents))
            places.append(place)
        todo, oracle = passes(weights.model, cleared=wanted.cleared, parts=wanted.parts), oracle_of(weights.model)
        unjudged = [None if oracle is None else first_other_text(oracle, data) for data in datasets]
        judged = tuple(oracle is not None and reason is None for reason in unjudged)
        request = EvaluationRequest(
            wanted.source, wanted.step, tuple(places), wanted.documents, tuple(todo), wanted.parts, judged
        )
        began = time.monotonic()
        with _progress("all data", len(todo) * sum(map(_targets, datasets))) as advance:
            scores = iter(score_on_ranks(config, request, Path(folder), wanted.ray_address, advance))
        seconds = (time.monotonic() - began) / len(places)
        found = [
            _evaluated(place, data, tokenizer, {how.name: next(scores) for how in todo}, seconds, reason)
            for place, data, reason in zip(wanted.places, datasets, unjudged, strict=True)
        ]
        return Measured(_facts(wanted, weights.where, weights.facts, weights.model), found)


def _config(wanted: Wanted, model: ModelConfig, settings: Sequence[str]) -> Config:
    """The config of a run that evaluates in this layout.  Micro-batches fill the pipeline, unless they are given."""
    base = Config.model_validate(
        {
            "model": model.model_dump(),
            "data": {"dataset": "unused", "segment": _segment(wanted, model), "streams": wanted.streams},
            "optimizer": {"warmup_steps": 0},
            "run": {
                "directory": "unused/run",
                "steps": 1,
                "precision": "fp32",
                "device": wanted.device,
                "tracking": {"enabled": False},
            },
        }
    )
    config = load(dump(base), settings).config
    if any(setting.startswith("parallel.micro_batch=") for setting in settings):
        return config
    of_rank, stages = config.data.streams // config.parallel.data, config.parallel.pipeline
    size = of_rank // stages if of_rank % stages == 0 else 1
    return load(dump(config), [f"parallel.micro_batch={max(size, 1)}"]).config


def _open(
    place: str, model: ModelConfig, tokenizer: "Tokenizer | None", needed: Callable[[], "Tokenizer"]
) -> "Documents":
    """A built dataset, or text to tokenize now, which needs the tokenizer."""
    if is_url(place) or (Path(place) / DATASET_FILE).is_file():
        dataset = Dataset.open(place, CacheSettings(default_directory(), 10**10, 60.0))
        expected = None if tokenizer is None else sha256(tokenizer.file).hexdigest()
        if expected is not None and dataset.tokenizer_sha256 != expected:
            raise DataError(
                f"{place} was built with a different tokenizer ({dataset.tokenizer_sha256[:12]}) than the model's "
                f"({expected[:12]}); give its text instead, which is tokenized on the fly"
            )
        if dataset.vocab_size > (model.vocab_size or 0):
            raise DataError(f"{place} has {dataset.vocab_size} tokens, but the model has {model.vocab_size}")
        return dataset
    units = [unit for source in open_sources([place]) for unit in source.units(1 << 30)]
    texts = (read.text for read in read_units(units, "text") if isinstance(read, Document))
    return InMemoryDataset.of_texts(texts, needed())


def _first(data: "Documents", count: int | None) -> "Documents":
    return data if count is None else FirstDocuments(data, count)


def _segment(wanted: Wanted, model: ModelConfig) -> int:
    return wanted.segment or _BLOCKS * model.window


def _targets(data: "Documents") -> int:
    return int((data.lengths - 1).clip(min=0).sum())


def _facts(wanted: Wanted, where: str, facts: dict[str, Any], model: ModelConfig) -> dict[str, Any]:
    segment = _segment(wanted, model)
    return {"source": where, "step": facts.get("step"), "window": model.window, "segment": segment}


def _evaluated(
    place: str,
    data: "Documents",
    tokenizer: "Tokenizer | None",
    scores: dict[str, Any],
    seconds: float,
    unjudged: str | None,
) -> Evaluated:
    return Evaluated(place, None if tokenizer is None else size_of(data, tokenizer), scores, seconds, unjudged)


@contextmanager
def _progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar with the time left, only on a terminal."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    text = (TextColumn("{task.description}", markup=False), TextColumn("{task.percentage:.0f}%"))
    columns = (text[0], BarColumn(), text[1], TimeRemainingColumn())
    screen = console()
    with Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal) as bar:
        task = bar.add_task(what, total=total)
        yield lambda tokens: bar.advance(task, tokens)
