"""Arguments that several commands share."""

from pathlib import Path

import click

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")
config_argument = click.argument("settings", nargs=-1, metavar="[CONFIG ...] [key=value ...]")


def split(settings: tuple[str, ...]) -> tuple[list[Path], list[str]]:
    """Split arguments into config files and overrides: one with `=` that is not a file is an override."""
    files, overrides = [], []
    for setting in settings:
        if "=" in setting and not Path(setting).is_file():
            overrides.append(setting)
        else:
            files.append(Path(setting))
    return files, overrides
