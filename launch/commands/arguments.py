"""Arguments that several commands share."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    import logging

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")
device_option = click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True, help="Where to compute."
)
tokenizer_option = click.option(
    "--tokenizer", metavar="FILE", help="tokenizer.json of the model, if it is not with the weights."
)
config_argument = click.argument("settings", nargs=-1, metavar="[CONFIG ...] [key=value ...]")


def split(settings: tuple[str, ...]) -> tuple[list[Path], list[str]]:
    """Split arguments into config files and overrides: one with `=` that is not a file is an override."""
    files, overrides = [], []
    for setting in settings:
        if "=" in setting and not _is_file(setting):
            overrides.append(setting)
        else:
            files.append(Path(setting))
    return files, overrides


def _is_file(setting: str) -> bool:
    try:
        return Path(setting).is_file()
    except (OSError, ValueError):  # too long for a path, or a character that none has
        return False


def quiet_libraries() -> None:
    """Before the model's libraries are imported: what they warn about is no concern of who uses a command of ours."""
    import logging
    import warnings

    warnings.simplefilter("ignore")
    for library in ("DeepSpeed", "megatron.core"):
        logging.getLogger(library).addFilter(_is_error)  # DeepSpeed sets its level anew when it is imported


def _is_error(record: "logging.LogRecord") -> bool:
    return record.levelno >= 40  # logging.ERROR
