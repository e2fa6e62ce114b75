"""Rules of the data: which datasets a config names, and what is in them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from brt_dist.config.layout_rules import divisors
from brt_dist.config.schema import Config


@dataclass(frozen=True)
class DatasetFacts:
    """What the rules need to know about a dataset.

    Attributes:
        documents: how many streams can read different documents at once (of a mixture, at its weights).
        vocab_size: vocabulary of its tokenizer.
        tokenizer_digest: sha256 of its tokenizer.
        longest: tokens of its longest document.
    """

    documents: int
    vocab_size: int
    tokenizer_digest: str
    longest: int = 2


def broken_data_rules(config: Config) -> Iterator[str]:
    """Broken rules that need no dataset to be read."""
    yield from _training_data(config)
    yield from _folders(config)


def _folders(config: Config) -> Iterator[str]:
    run = config.run.directory
    places = [("dataset", config.data.dataset), ("validation", config.data.validation)]
    places += [("mixture", part.dataset) for part in config.data.mixture]
    for name, folder in places:
        if isinstance(folder, Path) and run.resolve() == folder.resolve():
            yield f"run.directory and data.{name} are the same folder, {run}; nearest: run.directory={run / 'run'}"


def _training_data(config: Config) -> Iterator[str]:
    data = config.data
    if data.dataset is None and not data.mixture:
        yield "data.dataset is missing (folder or URL of the training dataset); for several datasets, set data.mixture"
    if data.dataset is not None and data.mixture:
        yield (
            f"data.dataset={data.dataset} and data.mixture are both set; nearest: only data.mixture, with "
            f"{{dataset: {data.dataset}, weight: ...}} added to it"
        )
    places = [str(part.dataset) for part in data.mixture]
    twice = sorted({place for place in places if places.count(place) > 1})
    if twice:
        yield f"data.mixture lists {twice[0]} more than once; nearest: one item with the sum of the weights"


def _training(config: Config) -> str:
    return f"the dataset {config.data.dataset}" if config.data.dataset is not None else "data.mixture"


def broken_dataset_rules(config: Config, dataset: DatasetFacts, validation: DatasetFacts | None) -> Iterator[str]:
    """Broken rules of a config with the datasets that it names."""
    expected = config.model.with_tokens(dataset.vocab_size).vocab_size or 0
    if config.model.vocab_size not in (None, expected):
        objective, added = config.model.objective, expected - dataset.vocab_size
        more = f" and model.objective={objective} adds {added}" if added else ""
        yield (
            f"model.vocab_size={config.model.vocab_size}, but {_training(config)} has "
            f"{dataset.vocab_size} tokens in its vocabulary{more}; nearest: model.vocab_size={expected}"
        )
    if dataset.documents < config.data.streams:
        yield (
            f"data.streams={config.data.streams}, but {_training(config)} has {dataset.documents} documents"
            + (" before one repeats at these weights" if config.data.mixture else "")
            + ", and every stream needs its own; "
            + (f"nearest: {_fitting_streams(config, dataset)}" if dataset.documents else "it is empty")
        )
    for facts, name in ((dataset, _training(config)), (validation, f"data.validation {config.data.validation}")):
        if facts is not None and facts.documents and facts.longest < 2:
            yield f"{name}: no document has two tokens or more, so there is nothing to predict"
    if validation is not None and validation.tokenizer_digest != dataset.tokenizer_digest:
        yield (
            f"data.validation {config.data.validation} was built with a different tokenizer "
            f"({validation.tokenizer_digest[:12]}) than {_training(config)} "
            f"({dataset.tokenizer_digest[:12]}); rebuild it with the tokenizer of the training data"
        )


def _fitting_streams(config: Config, dataset: DatasetFacts) -> str:
    """The largest number of streams that the documents allow, and what else must change with it, as settings."""
    layout, most = config.parallel, dataset.documents
    if most >= layout.data * layout.micro_batch:
        portion = layout.data * layout.micro_batch
        return f"data.streams={most // portion * portion}"
    ranks = min(layout.data, most)
    each = most // ranks
    settings = [f"data.streams={each * ranks}", f"parallel.micro_batch={max(divisors(each, layout.micro_batch))}"]
    return ", ".join(settings + ([f"parallel.data={ranks}"] if ranks != layout.data else []))
