"""`brt export` and `brt import`: weights out and in."""

import json
from pathlib import Path
from typing import Any

import click

from brt_dist.kinds import WEIGHT_FORMATS
from launch.commands.arguments import json_option
from launch.commands.data import Size

_out = click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder to make.")
_shard_size = click.option("--shard-size", type=Size(), default="5GB", show_default=True, help="Weights per file.")


class _Export(click.Command):
    """Its help lists the formats that there are."""

    def format_help_text(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_help_text(ctx, formatter)
        with formatter.section("Formats"):
            formatter.write_dl([(name, form.about) for name, form in WEIGHT_FORMATS.items()])


@click.command(cls=_Export)
@click.argument("source", metavar="SOURCE")
@click.option("--to", "form", required=True, type=click.Choice(list(WEIGHT_FORMATS)), help="Format to write.")
@_out
@click.option("--step", type=click.IntRange(0), help="Of which checkpoint.  [default: the newest]")
@_shard_size
@json_option
def export(source: str, form: str, out: Path, step: int | None, shard_size: int, as_json: bool) -> None:
    """Write the weights of SOURCE for others.

    SOURCE: a run directory, a checkpoint, a folder or URL (s3://...) that holds some, or what brt exported before.

    The files are verified before they are used.  Weights are float32, whatever the precision of the run.
    """
    from brt_dist.export.open import open_weights

    with open_weights(source, step) as weights:
        files = WEIGHT_FORMATS[form].write(weights, out, shard_size)
        _tell(weights, out, files, as_json)


@click.command("import")
@click.argument("source", metavar="SOURCE")
@_out
@_shard_size
@json_option
def import_(source: str, out: Path, shard_size: int, as_json: bool) -> None:
    """Make a folder that a run can start from (run.init_from=OUT).

    SOURCE: an .npz file with the names of the authors' code (`param/NAME`) with a .json beside it that has their
    settings, or anything that `brt export` takes or makes.
    """
    from brt_dist.export.open import open_weights

    with open_weights(source) as weights:
        files = WEIGHT_FORMATS["safetensors"].write(weights, out, shard_size)
        _tell(weights, out, files, as_json)


def _tell(weights: Any, out: Path, files: list[str], as_json: bool) -> None:
    if as_json:
        facts = {"source": weights.where, "out": str(out), "files": files, "tensors": len(weights.shapes)}
        click.echo(json.dumps(facts | {"tokenizer": weights.tokenizer is not None, **weights.facts}))
        return
    click.echo(f"{weights.where} -> {out}: {', '.join(files)}")
    if weights.tokenizer is None:
        click.echo("no tokenizer: the dataset of the run is not where it was; copy its tokenizer.json", err=True)
