"""`brt data`: build, verify and inspect datasets; `brt data corpus` is in corpus.py.

Only click is imported here, the rest when a command runs, so that help is instant.  With --json a command prints one
object on standard output; everything else goes to standard error.
"""

import json
from pathlib import Path
from typing import Any

import click

from launch.commands.arguments import LocalPath, NearestGroup, json_option
from launch.commands.corpus import corpus
from pipelines.console import console

_folder = LocalPath(file_okay=False)

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}


class Size(click.ParamType):
    """A number of bytes, such as 64MB, 1GiB or 4096."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        number = str(value).strip().rstrip("BbIiKkMmGg")
        unit = str(value).strip()[len(number) :].upper()
        try:
            size = int(float(number) * _UNITS[unit])
        except (ValueError, KeyError, OverflowError):
            self.fail(f"{value!r} is not a size; give a number of bytes, such as 64MB or 1GiB", param, ctx)
        if size < 1:
            self.fail(f"{value!r} is not positive", param, ctx)
        return size


@click.group(cls=NearestGroup)
def data() -> None:
    """Build, verify and inspect datasets."""


data.add_command(corpus)


class _Build(click.Command):
    """`brt data build`, whose help lists the kinds of sources."""

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        from pipelines.sources import spellings

        super().format_help_text(ctx, formatter)
        with formatter.section("Kinds of sources, and what a document is in each"):
            formatter.write_dl(spellings())


@data.command(cls=_Build)
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...")
@click.option("--out", required=True, type=_folder, help="Folder of the dataset; an interrupted build resumes.")
@click.option(
    "--tokenizer",
    default="bpe:32768",
    show_default=True,
    help="bytes, bpe:SIZE (trained on the sources), the path of a tokenizer.json, a SentencePiece model or a folder "
    "with one, or OWNER/NAME on Hugging Face's hub.",
)
@click.option("--shard-size", type=Size(), default="64MB", show_default=True, help="Bytes of text per shard.")
@click.option(
    "--workers",
    type=click.IntRange(0),
    help="Parallel Ray tasks; 0: no Ray.  [default: none for less than 32 MB of text, else the cores of this machine]",
)
@click.option("--ray-address", help="Ray cluster to build on; sources and --out must be on its shared storage.")
@click.option(
    "--on-bad",
    "--on-fault",
    "on_bad",
    type=click.Choice(["error", "skip"]),
    default="error",
    show_default=True,
    help="On a document that cannot be used: stop, or skip and report it.",
)
@click.option("--text-field", default="text", show_default=True, help="Field of a record that holds the text.")
@click.option("--suffix", multiple=True, help="In a folder, read only files with this suffix; may be repeated.")
@click.option(
    "--lossy",
    type=click.Choice(["error", "allow"]),
    default="error",
    show_default=True,
    help="If the tokenizer loses text: stop, or report it and continue.",
)
@click.option("--deduplicate", is_flag=True, help="Of documents with the same text, keep only the first.")
@click.option(
    "--validation-share",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Hold out this share of the documents, chosen by a hash of their text: writes OUT/train and OUT/validation.",
)
@click.option("--overwrite", is_flag=True, help="Replace a different build in the folder.")
@json_option
def build(
    sources: tuple[str, ...],
    out: Path,
    tokenizer: str,
    shard_size: int,
    workers: int | None,
    ray_address: str | None,
    on_bad: Any,
    text_field: str,
    suffix: tuple[str, ...],
    lossy: Any,
    deduplicate: bool,
    validation_share: float | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Build a dataset from SOURCEs.

    SOURCE is a file, a folder whose files are read in the order of their paths, or KIND:FOLDER for a folder that is
    read as a whole.  Each may be local or an fsspec URL.  Tars are read only if given directly or with --suffix.
    """
    from dataclasses import replace

    from pipelines.build import BuildSettings
    from pipelines.build import build as run_build
    from pipelines.card import write_card
    from pipelines.report import BuildBar, build_json, print_build
    from pipelines.selection import Split

    settings = BuildSettings(
        sources=sources,
        tokenizer=tokenizer,
        shard_size=shard_size,
        suffixes=suffix,
        text_field=text_field,
        on_bad=on_bad,
        lossy=lossy,
        deduplicate=deduplicate,
    )
    builds = {"": (settings, out)}
    if validation_share is not None:
        train = out / "train"
        held_out = replace(
            settings, tokenizer=str(train / "tokenizer.json"), split=Split(validation_share, "validation")
        )
        builds = {
            "train": (replace(settings, split=Split(validation_share, "train")), train),
            "validation": (held_out, out / "validation"),
        }
    made = {}
    for name, (wanted, folder) in builds.items():
        with BuildBar(console()) as bar:
            report = run_build(
                wanted, folder, workers=workers, ray_address=ray_address, overwrite=overwrite, progress=bar
            )
        write_card(report)
        print_build(report, console())
        made[name] = build_json(report)
    if as_json:
        _print_json(made[""] if validation_share is None else made)


@data.command()
@click.argument("folder", type=_folder)
@click.option("--workers", type=click.IntRange(1), help="Shards to read in parallel.  [default: cores of this machine]")
@json_option
def verify(folder: Path, workers: int | None, as_json: bool) -> None:
    """Check every digest of a dataset, and name what is damaged."""
    from brt_dist.errors import DataError
    from pipelines.report import verify_bar
    from pipelines.verify import verify as run_verify

    with verify_bar(console()) as progress:
        record, problems = run_verify(folder, workers=workers, progress=progress)
    if as_json:
        _print_json({"dataset": str(folder), "digest": record.digest, "ok": not problems, "problems": problems})
    if problems:
        raise DataError(f"{folder} is damaged:\n" + "\n".join(f"  {problem}" for problem in problems))
    console().print(
        f"{folder}: {len(record.shards)} shards, {record.tokens:,} tokens, all digests match", soft_wrap=True
    )


@data.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=LocalPath(dir_okay=False))
@click.option("--out", required=True, type=_folder, help="Folder of the dataset: links to the files, and an index.")
@click.option(
    "--tokenizer",
    required=True,
    type=click.Path(path_type=Path),
    help="Tokenizer that produced the ids: a tokenizer.json, a SentencePiece model, a folder with one, or OWNER/NAME.",
)
@click.option("--extension", default="tokens", show_default=True, help="Tars: extension of the members that hold ids.")
@click.option(
    "--dtype",
    type=click.Choice(["uint16", "uint32"]),
    help="Tars: type of the ids, little-endian.  [default: uint16]",
)
@click.option("--end-token", type=click.IntRange(0), help="Leave out this id where it ends a document.")
@json_option
def index(
    files: tuple[Path, ...],
    out: Path,
    tokenizer: Path,
    extension: str,
    dtype: Any,
    end_token: int | None,
    as_json: bool,
) -> None:
    """Index files of token ids as a dataset.

    FILE is a webdataset tar of raw token ids, or NAME.bin with NAME.idx beside it, as Megatron writes them.  The files
    stay where they are; nothing is copied.
    """
    from pipelines.foreign import TokenFiles, index_files
    from pipelines.report import print_left_out

    settings = TokenFiles(extension, dtype, end_token)
    record = index_files(files, out, tokenizer, settings, lambda text: console().print(text, markup=False))
    console().print(f"{out}: {record.documents:,} documents, {record.tokens:,} tokens", soft_wrap=True, markup=False)
    print_left_out(out, record, console())
    if as_json:
        _print_json({"dataset": str(out), **record.model_dump(exclude={"shards"})})


@data.command()
@click.argument("folder", type=_folder)
@click.option("--plots", type=_folder, help="Write lengths.png and sources.png to this folder.")
@json_option
def stats(folder: Path, plots: Path | None, as_json: bool) -> None:
    """Show the document lengths and the sources of a dataset."""
    from pipelines.report import print_statistics
    from pipelines.statistics import plot_lengths, plot_sources, statistics

    found = statistics(folder)
    if plots:
        plot_lengths(found, plots / "lengths.png")
        plot_sources(found, plots / "sources.png")
    if as_json:
        _print_json({"dataset": str(folder), **found})
    else:
        print_statistics(str(folder), found)


@data.command()
@click.argument("folder", type=_folder, required=False)
@click.option(
    "--run", type=_folder, help="Inspect the data of this run directory, with its settings, instead of FOLDER."
)
@click.option("--document", type=click.IntRange(0), help="Show the text of this document.")
@click.option("--stream", type=click.IntRange(0), help="Show what this stream reads; needs --run or the options below.")
@click.option(
    "--step",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="The step to show; steps count from 1.",
)
@click.option("--streams", type=click.IntRange(1), help="Streams of the run (data.streams).")
@click.option("--segment", type=click.IntRange(1), help="Tokens per step of a stream (data.segment).")
@click.option("--window", type=click.IntRange(1), help="Tokens per block (model.window).")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the run (run.seed).")
@click.option(
    "--characters", type=click.IntRange(1), default=1000, show_default=True, help="Show at most this much text."
)
@json_option
def inspect(
    folder: Path | None,
    run: Path | None,
    document: int | None,
    stream: int | None,
    step: int,
    streams: int | None,
    segment: int | None,
    window: int | None,
    seed: int,
    characters: int,
    as_json: bool,
) -> None:
    """Show a dataset, a document or a stream.

    Prints the totals of a dataset, the text of a document, or what a stream reads in one step.

    With --run, --step and --stream it shows what that stream of the run reads in that step, even if the number of
    streams has changed or the data is a mixture.
    """
    if (folder is None) == (run is None):
        raise click.UsageError("give either a dataset folder or --run with a run directory")
    if run is not None:
        _print_inspection(_inspect_run(run, stream, step, characters), as_json)
        return
    from brt_dist.data.dataset import Dataset
    from brt_dist.data.inspect import describe_dataset, describe_document, describe_stream
    from brt_dist.data.stream_schedule import StreamSchedule

    with Dataset.open(folder or Path()) as dataset:
        if stream is not None:
            if streams is None or segment is None or window is None:
                raise click.UsageError(
                    "--stream needs --streams, --segment and --window, with the values of the run's config"
                )
            schedule = StreamSchedule(dataset.lengths, streams=streams, segment=segment, window=window, seed=seed)
            description = describe_stream(dataset, schedule, stream, step, characters)
        elif document is not None:
            description = describe_document(dataset, document, characters)
        else:
            description = describe_dataset(dataset)
    _print_inspection(description, as_json)


def _inspect_run(run: Path, stream: int | None, step: int, characters: int) -> dict[str, Any]:
    from brt_dist.data.inspect import describe_stream
    from launch.run.stream_position import position_of

    if stream is None:
        raise click.UsageError("--run shows what a stream reads: give --stream and --step")
    found = position_of(run, step - 1)
    with found.dataset:
        return describe_stream(found.dataset, found.schedule, stream, step, characters, found.cursor)


def _print_inspection(description: dict[str, Any], as_json: bool) -> None:
    from pipelines.report import print_description

    if as_json:
        _print_json(description)
    else:
        print_description(description)


def _print_json(value: dict[str, Any]) -> None:
    click.echo(json.dumps(value))
