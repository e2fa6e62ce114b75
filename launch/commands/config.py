"""`brt config show`, `brt config keys` and `brt config schema`."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from brt_dist.config.costs import warnings
from brt_dist.config.keys import nearest_key
from brt_dist.config.loading import flatten, load
from brt_dist.config.rules import check
from brt_dist.config.schema import Config
from brt_dist.errors import ConfigError
from launch.commands.arguments import LocalPath, NearestGroup, config_argument, json_option, split
from launch.run.redact import redact


@click.group(cls=NearestGroup)
def config() -> None:
    """Show a resolved config, what each key means, or the schema of all keys."""


@config.command()
@config_argument
@click.option(
    "--all/--changed", "everything", default=True, help="Show all keys, or only those that differ from their default."
)
@json_option
def show(settings: tuple[str, ...], everything: bool, as_json: bool) -> int:
    """Print every key with its value and its origin (default, FILE:LINE or command line).

    An invalid config is shown too, followed by what is wrong with it; the exit code is then 10.  Without arguments it
    prints all keys with their defaults, as `brt config keys` does.
    """
    if not settings:
        _show_keys("", as_json)
        return 0
    files, overrides = split(settings)
    resolved = load(files, overrides)
    values = {key: _visible(value) for key, value in flatten(resolved.config).items()}
    shown = {key: value for key, value in values.items() if everything or resolved.provenance[key] != "default"}
    problem = _problem(resolved.config)
    if as_json:
        items = {key: {"value": value, "from": resolved.provenance[key]} for key, value in shown.items()}
        click.echo(json.dumps({"config": items, "problem": str(problem) if problem else None}))
    else:
        _print_table(shown, resolved.provenance)
    if problem is None:
        for warning in (*warnings(resolved.config), *_missing(resolved.config)):
            click.echo(f"warning: {warning}", err=True)
        return 0
    click.echo(f"error: {problem}", err=True)
    return int(problem.exit_code)


@config.command()
@click.argument("prefix", default="", metavar="[PREFIX]")
@json_option
def keys(prefix: str, as_json: bool) -> None:
    """Print the keys that begin with PREFIX or contain it, each with default, choices and meaning.

    \b
      brt config keys optimizer
      brt config keys checkpoint
    """
    _show_keys(prefix, as_json)


def _show_keys(prefix: str, as_json: bool) -> None:
    from brt_dist.config.describe import described, plain
    from pipelines.tables import show as show_table
    from pipelines.tables import table

    every = list(described(Config))
    found = [key for key in every if key.name == prefix or key.name.startswith(f"{prefix}.")] if prefix else every
    found = found or [key for key in every if prefix in key.name]
    if not found:
        raise ConfigError(f"no key has {prefix!r} in its name{nearest_key(Config, Config, '', prefix)}")
    if as_json:
        items = {
            key.name: {"default": key.default, "required": key.required, "choices": key.choices, "meaning": key.meaning}
            for key in found
        }
        click.echo(json.dumps({"keys": items}))
        return
    rows = [
        (key.name, "required" if key.required else plain(key.default), " | ".join(key.choices), key.meaning)
        for key in found
    ]
    show_table(table(("key", "default", "choices", "meaning"), rows))


@config.command()
@click.option("--json", "as_json", is_flag=True, help="Print it on one line.")
@click.option("--output", type=LocalPath(dir_okay=False), help="Write to this file instead.")
def schema(as_json: bool, output: Path | None) -> None:
    """Print the JSON schema of the config, for editors.

    Save it with --output brt.schema.json, and put this line at the top of a YAML file beside it:

      # yaml-language-server: $schema=brt.schema.json
    """
    content = {"$schema": "https://json-schema.org/draft/2020-12/schema", **Config.model_json_schema()}
    text = json.dumps(content, indent=None if as_json else 2)
    if output is None:
        click.echo(text)
    else:
        from brt_dist.files import write_atomic

        write_atomic(output, text + "\n")


def _missing(config: Config) -> Iterator[str]:
    """The datasets of a config that do not exist; URLs are not checked."""
    from brt_dist.data.format import load_dataset
    from brt_dist.errors import DataError

    for place in (*(place for place, _ in config.data.training), config.data.validation):
        if isinstance(place, Path):
            try:
                load_dataset(place)
            except DataError as error:
                yield str(error)


def _visible(value: Any) -> Any:
    return redact(value) if isinstance(value, str) else value


def _problem(resolved: Config) -> ConfigError | None:
    try:
        check(resolved)
    except ConfigError as error:
        return error
    return None


def _print_table(values: dict[str, Any], provenance: dict[str, str]) -> None:
    import yaml

    from pipelines.tables import show, table

    cells = {key: yaml.safe_dump(value, default_flow_style=True).splitlines()[0] for key, value in values.items()}
    sections = {key.split(".")[0]: Config.model_fields[key.split(".")[0]].description for key in cells}
    for section, about in sections.items():
        keys = [key for key in cells if key.split(".")[0] == section]
        click.secho(f"{section}: {about}", bold=True)
        show(table(("", "", ""), [(f"  {key}", cells[key], provenance[key]) for key in keys], dim="default"))
