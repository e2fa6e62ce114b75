"""`brt export` and `brt import`: weights out and in."""

import json
from pathlib import Path
from typing import Any

import click

from brt_dist.kinds import WEIGHT_FORMATS
from launch.commands.arguments import LocalPath, json_option
from launch.commands.data import Size

_out = click.option("--out", required=True, type=LocalPath(), help="Folder to create.")
_shard_size = click.option(
    "--shard-size", type=Size(), default="5GB", show_default=True, help="Largest file of weights."
)


class _Export(click.Command):
    """`brt export`, whose help lists the formats."""

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_help_text(ctx, formatter)
        with formatter.section("Formats"):
            formatter.write_dl([(name, form.about) for name, form in WEIGHT_FORMATS.items()])


@click.command(cls=_Export)
@click.argument("source", metavar="SOURCE")
@click.option("--to", "form", required=True, type=click.Choice(list(WEIGHT_FORMATS)), help="Format to write.")
@_out
@click.option("--step", type=click.IntRange(0), help="Step of the checkpoint.  [default: the newest]")
@_shard_size
@json_option
def export(source: str, form: str, out: Path, step: int | None, shard_size: int, as_json: bool) -> None:
    """Export the weights of SOURCE.

    SOURCE is a run directory, a checkpoint, a folder or URL (s3://...) of checkpoints, or an earlier export.

    Files are verified before they are read.  Weights are written as float32, whatever the precision of the run.
    """
    from brt_dist.export.open import open_weights

    with open_weights(source, step) as weights:
        files = WEIGHT_FORMATS[form].write(weights, out, shard_size)
        _tell(weights, out, files, as_json)


@click.command("import")
@click.argument("source", metavar="SOURCE")
@click.option("--out", type=LocalPath(), help="Folder to create.")
@click.option("--print-config", is_flag=True, help="Print the model section that fits a Hugging Face GPT.")
@_shard_size
@json_option
def import_(source: str, out: Path | None, print_config: bool, shard_size: int, as_json: bool) -> None:
    """Write a folder of weights that a run can start from (run.init_from=OUT).

    SOURCE is an .npz file with the names of the authors' code (`param/NAME`) and a .json file with their settings
    beside it; a plain Hugging Face GPT (GPT-2 or LLaMA, a folder or hf://OWNER/NAME), whose weights are used where they
    fit; or anything that `brt export` reads or writes.
    """
    if print_config:
        _print_config(source, as_json)
        return
    if out is None:
        raise click.UsageError("Missing option '--out'.")
    from brt_dist.export.open import open_weights

    with open_weights(source) as weights:
        files = WEIGHT_FORMATS["safetensors"].write(weights, out, shard_size)
        _tell(weights, out, files, as_json)


def _print_config(source: str, as_json: bool) -> None:
    from brt_dist.errors import CheckpointError
    from brt_dist.export.gpt.folder import find_gpt, shape_in

    folder = find_gpt(source)
    if folder is None:
        raise CheckpointError(f"{source}: no Hugging Face model (a folder with its config.json, or hf://OWNER/NAME)")
    section = {"model": shape_in(folder).section()}
    if as_json:
        click.echo(json.dumps(section))
        return
    import yaml

    click.echo(yaml.safe_dump(section, sort_keys=False), nl=False)


def _tell(weights: Any, out: Path, files: list[str], as_json: bool) -> None:
    if as_json:
        facts = {"source": weights.where, "out": str(out), "files": files, "tensors": len(weights.shapes)}
        click.echo(json.dumps(facts | {"tokenizer": weights.tokenizer is not None, **weights.facts}))
        return
    click.echo(f"{weights.where} -> {out}: {', '.join(files)}")
    if weights.origin:
        click.echo(weights.origin, err=True)
    if weights.tokenizer is None:
        why = "there is none" if weights.origin else "the run's dataset has moved; copy its tokenizer.json yourself"
        click.echo(f"no tokenizer exported: {why}", err=True)
