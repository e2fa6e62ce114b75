"""What the data commands show to people (standard error), and the same as JSON values."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from brt_dist.data.format import DatasetRecord
from pipelines.build import BuildProgress, BuildReport
from pipelines.console import console as made_console
from pipelines.tables import show, table

_SKIPPED_SHOWN = 10


class BuildBar(BuildProgress):
    """A progress bar of a build; without a terminal, one line per stage."""

    def __init__(self, console: Console) -> None:
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._console = console
        self._task = self._bar.add_task("", total=None, rate="")
        self._began = time.perf_counter()

    def __enter__(self) -> "BuildBar":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def stage(self, text: str) -> None:
        self._began = time.perf_counter()
        self._bar.update(self._task, description=text)
        if not self._console.is_terminal:
            self._console.print(text)

    def note(self, text: str) -> None:
        self._bar.console.print(text, markup=False, soft_wrap=True)

    def shards(self, done: int, total: int, tokens: int) -> None:
        rate = f"{tokens / max(time.perf_counter() - self._began, 1e-3):,.0f} tokens/s" if tokens else ""
        self._bar.update(self._task, completed=done, total=total, rate=rate)


@contextmanager
def verify_bar(console: Console) -> Iterator[Callable[[int, int], None]]:
    """A progress bar of a verification: call it with the shards that are done, and all."""
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("verifying shards", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def build_json(report: BuildReport) -> dict[str, Any]:
    """A build as one JSON object."""
    dataset = report.dataset
    return {
        "dataset": str(report.folder),
        "digest": dataset.digest,
        "documents": dataset.documents,
        "tokens": dataset.tokens,
        "text_bytes": dataset.text_bytes,
        "bytes_per_token": dataset.text_bytes / dataset.tokens,
        "vocab_size": dataset.tokenizer.vocab_size,
        "tokenizer_sha256": dataset.tokenizer.sha256,
        "shards": len(dataset.shards),
        "written_shards": report.written_shards,
        "kept_shards": report.kept_shards,
        "skipped": _skipped(report.dataset),
        "sources": [source.model_dump() for source in dataset.sources],
        "seconds": round(report.seconds, 3),
        "written_tokens": report.written_tokens,
        "writing_seconds": round(report.writing_seconds, 3),
        "tokens_per_second": round(report.tokens_per_second, 1),
    }


def print_build(report: BuildReport, console: Console) -> None:
    """The table at the end of a build."""
    sources = report.dataset.sources
    rows = [(source.name, *_counts(source, sum(source.skipped.values()))) for source in sources]
    if len(rows) > 1:
        rows.append(("all", *_counts(report.dataset, sum(_skipped(report.dataset).values()))))
    console.print(f"dataset {report.folder}", markup=False, highlight=False, soft_wrap=True)
    head = ("source", "documents", "tokens", "bytes/token", "left out")
    show(table(head, rows, right=head[1:]), console.file)
    dataset = report.dataset
    shards = f"{len(dataset.shards)} shards ({report.written_shards} written, {report.kept_shards} kept)"
    took = f"{report.writing_seconds:.1f} s at {report.tokens_per_second:,.0f} tokens/s"
    speed = f", of which {report.written_tokens:,} tokens took {took}" if report.written_shards else ""
    console.print(
        f"{shards}, vocabulary {dataset.tokenizer.vocab_size:,}, {report.seconds:.1f} s{speed}", soft_wrap=True
    )
    console.print(f"digest {dataset.digest}", highlight=False, soft_wrap=True)
    print_left_out(report.folder, dataset, console)


def print_left_out(folder: Path, dataset: DatasetRecord, console: Console) -> None:
    """What was left out of the dataset: how many of each kind, and the first places."""
    skipped = _skipped(dataset)
    if not skipped:
        return
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(skipped.items()))
    console.print(Text.assemble(("left out:", "yellow"), f" {reasons}"), soft_wrap=True)
    places = _skipped_places(folder, dataset)
    for place in places[:_SKIPPED_SHOWN]:
        console.print(f"  {place}", markup=False, highlight=False, soft_wrap=True)
    if sum(sum(shard.skipped.values()) for shard in dataset.shards) > _SKIPPED_SHOWN:
        console.print(
            f"  see {folder}/shard-*.index.json, under skipped, for all of them", markup=False, soft_wrap=True
        )


def print_statistics(folder: str, found: dict[str, Any]) -> None:
    """What `brt data stats` shows, on standard output: totals, and two tables with bars."""
    console = made_console(stderr=False)
    console.print(f"{folder}: {found['documents']:,} documents, {found['tokens']:,} tokens", markup=False)
    most = max(entry["documents"] for entry in found["length_histogram"])
    lengths = [
        (
            f"{entry['from']:,} to {entry['to'] - 1:,}",
            f"{entry['documents']:,}",
            f"{entry['tokens']:,}",
            "█" * -(-entry["documents"] * 30 // most),
        )
        for entry in found["length_histogram"]
    ]
    show(table(("tokens per document", "documents", "tokens", ""), lengths, right=("documents", "tokens")))
    sources = [
        (
            source["name"],
            f"{source['documents']:,}",
            f"{source['tokens']:,}",
            f"{source['share']:.1%}",
            f"{sum(source['skipped'].values()):,}",
        )
        for source in found["sources"]
    ]
    head = ("source", "documents", "tokens", "share", "left out")
    console.print()
    show(table(head, sources, right=head[1:]))


def print_description(description: dict[str, Any]) -> None:
    """A description from `brt_dist.data.inspect`, one value per line, on standard output because it was requested."""
    console = made_console(stderr=False)
    for line in _lines(description, ""):
        console.print(line, soft_wrap=True)


def _lines(value: dict[str, Any], indent: str) -> Iterator[str]:
    for key, item in value.items():
        if key == "text":
            yield f"{indent}text:"
            yield from (f"{indent}  | {line}" for line in item.splitlines())
        elif isinstance(item, list):
            for number, entry in enumerate(item):
                yield f"{indent}{key} {number}:"
                yield from _lines(entry, indent + "  ")
        elif isinstance(item, dict):
            yield f"{indent}{key}: " + ", ".join(f"{name} {_number(inner)}" for name, inner in item.items())
        else:
            yield f"{indent}{key}: {_number(item)}"


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _counts(counted: Any, skipped: int) -> tuple[str, str, str, str]:
    per_token = f"{counted.text_bytes / counted.tokens:.2f}" if counted.tokens else "-"
    return f"{counted.documents:,}", f"{counted.tokens:,}", per_token, f"{skipped:,}"


def _skipped(dataset: DatasetRecord) -> dict[str, int]:
    total: dict[str, int] = {}
    for source in dataset.sources:
        for reason, count in source.skipped.items():
            total[reason] = total.get(reason, 0) + count
    return total


def _skipped_places(folder: Path, dataset: DatasetRecord) -> list[str]:
    from brt_dist.data.format import index_name, load_index

    places: list[str] = []
    for shard in dataset.shards:
        if shard.skipped and len(places) < _SKIPPED_SHOWN:
            index = load_index(folder / index_name(shard.name))
            places += [f"{item.place}: {item.reason}" for item in index.skipped]
    return places
