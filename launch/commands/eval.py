"""`brt eval`."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from brt_dist.errors import DataError
from brt_dist.run_directory import RunDirectory
from launch.commands.arguments import device_option, json_option, quiet_libraries, tokenizer_option
from launch.tracking.additions import add_to_run
from launch.views.evaluated import Evaluated, events_of, show_evaluated

if TYPE_CHECKING:
    from brt_dist.data.reader import Documents
    from brt_dist.evaluation.forgetting import MemoryPart
    from brt_dist.inference import TrainedModel

_BLOCKS = 8  # of a segment, unless said otherwise; the result with memory carried does not depend on it
_MEMORY: tuple[str, ...] = ("carried", "cleared")
_PART: "dict[str, MemoryPart]" = {"state cleared": "state", "cache cleared": "cache"}


@click.command("eval")
@click.argument("source", metavar="SOURCE")
@click.option("--data", "places", multiple=True, required=True, metavar="DATA", help="What to read; may be repeated.")
@click.option("--step", type=click.IntRange(0), help="Step of the checkpoint.  [default: the newest]")
@click.option("--documents", type=click.IntRange(1), help="Read only the first documents.")
@click.option("--segment", type=click.IntRange(1), help="Tokens read at a time, a multiple of the window.")
@click.option("--streams", type=click.IntRange(1), default=8, show_default=True, help="Documents read at a time.")
@click.option("--carried-only", is_flag=True, help="Leave out the second pass, with memory cleared every segment.")
@click.option(
    "--parts", is_flag=True, help="Also clear only the state, and only the cache: what each of them is worth."
)
@click.option("--track", is_flag=True, help="Add the result to the run SOURCE: its events, report and MLflow run.")
@click.option("--plot", type=click.Path(path_type=Path), help="Draw bits/token by position in the document (PNG).")
@tokenizer_option
@device_option
@json_option
def evaluate(
    source: str,
    places: tuple[str, ...],
    step: int | None,
    documents: int | None,
    segment: int | None,
    streams: int,
    carried_only: bool,
    parts: bool,
    track: bool,
    plot: Path | None,
    tokenizer: str | None,
    device: str,
    as_json: bool,
) -> None:
    """Measure the model of SOURCE on whole documents.

    SOURCE is a run directory, a checkpoint, a folder or URL (s3://...) of checkpoints, or an export.  DATA is a dataset
    of `brt data build`, or text that is tokenized on the fly: a file, or a folder of files (.txt, .jsonl and all that
    `brt data build` reads; each file or record is a document).

    \b
      brt eval runs/books --data data/validation --plot positions.png
      brt eval exported --data chapter1.txt --data notes.jsonl --json

    Every token of a document but its first is predicted, with memory carried from its beginning.  A second pass clears
    memory at the start of every segment: the difference is what the carried memory is worth.
    """
    quiet_libraries()
    from brt_dist.evaluation.forgetting import parts_of
    from brt_dist.inference import load

    if track:
        RunDirectory.existing(Path(source))
    with load(source, step, device=device, tokenizer=tokenizer) as model:
        window = model.config.window
        segment = segment or _BLOCKS * window
        memories = _MEMORY[:1] if carried_only else _MEMORY
        memories += tuple(f"{part} cleared" for part in parts_of(model.config)) if parts else ()
        found = []
        for place in places:
            data = _first(_open(place, model), documents)
            found.append(_evaluate(model, place, data, segment, streams, memories))
        facts = {"source": model.where, "step": model.facts.get("step"), "window": window, "segment": segment}
    if plot is not None:
        from launch.views.position_plot import plot_positions

        plot_positions(plot, {one.name: {m: s.positions for m, s in one.scores.items()} for one in found})
    if track:
        add_to_run(Path(source), events_of(found, int(facts["step"] or 0)))
    if as_json:
        click.echo(json.dumps(facts | {"plot": plot and str(plot), "results": [one.to_json() for one in found]}))
        return
    show_evaluated(facts, found)
    if plot is not None:
        click.echo(f"\nplot: {plot}")


def _open(place: str, model: "TrainedModel") -> "Documents":
    """A built dataset, or text to tokenize now."""
    from brt_dist.data.dataset import Dataset
    from brt_dist.data.file_cache import CacheSettings, default_directory
    from brt_dist.data.format import DATASET_FILE
    from brt_dist.data.in_memory import InMemoryDataset
    from brt_dist.files import is_url
    from pipelines.sources import Document, open_sources, read_units

    if is_url(place) or (Path(place) / DATASET_FILE).is_file():
        dataset = Dataset.open(place, CacheSettings(default_directory(), 10**10, 60.0))
        expected = model.owner.tokenizer
        if expected is not None and dataset.tokenizer_sha256 != expected:
            raise DataError(
                f"{place} was built with another tokenizer ({dataset.tokenizer_sha256[:12]}) than the model's "
                f"({expected[:12]}); give its text instead, which is tokenized on the fly"
            )
        if dataset.vocab_size > (model.config.vocab_size or 0):
            raise DataError(f"{place} has {dataset.vocab_size} tokens and the model knows {model.config.vocab_size}")
        return dataset
    units = [unit for source in open_sources([place]) for unit in source.units(1 << 30)]
    texts = (read.text for read in read_units(units, "text") if isinstance(read, Document))
    return InMemoryDataset.of_texts(texts, model.tokenizer)


def _first(data: "Documents", count: int | None) -> "Documents":
    from brt_dist.data.subset import FirstDocuments

    return data if count is None else FirstDocuments(data, count)


def _evaluate(
    model: "TrainedModel", name: str, data: "Documents", segment: int, streams: int, memories: Sequence[str]
) -> Evaluated:
    from brt_dist.evaluation.score import score
    from brt_dist.evaluation.texts import size_of

    began = time.monotonic()
    total = int((data.lengths - 1).clip(min=0).sum())
    scores = {}
    for memory in memories:
        with _progress(f"{name}, memory {memory}", total) as advance:
            scores[memory] = score(
                model.network,
                data,
                segment=segment,
                streams=streams,
                clear_memory=memory == "cleared",
                clear_part=_PART.get(memory),
                on_tokens=advance,
            )
    size = size_of(data, model.tokenizer) if model.has_tokenizer else None
    return Evaluated(name, size, scores, time.monotonic() - began)


@contextmanager
def _progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar with the time left, on a terminal only."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    text = (TextColumn("{task.description}"), TextColumn("{task.percentage:.0f}%"))
    columns = (text[0], BarColumn(), text[1], TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=total)
        yield lambda tokens: bar.advance(task, tokens)
