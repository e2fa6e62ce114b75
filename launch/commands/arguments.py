"""Arguments that several commands share."""

import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from brt_dist.errors import ConfigError
from brt_dist.files import is_url

if TYPE_CHECKING:
    import logging

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")
device_option = click.option(
    "--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True, help="Where to compute."
)
tokenizer_option = click.option(
    "--tokenizer", metavar="FILE", help="tokenizer.json of the model, if it is not with the weights."
)


class NearestGroup(click.Group):
    """A group of commands that names the nearest one for a name that it does not know."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        known = self.list_commands(ctx)
        name = args[0]
        if name not in known and not name.startswith("-") and not ctx.resilient_parsing:  # that completes a word
            near = difflib.get_close_matches(name[:200], known, n=1)
            hint = f"nearest: {near[0]}" if near else f"there are: {', '.join(known)}"
            ctx.fail(f"No such command {name!r}; {hint}")
        return super().resolve_command(ctx, args)


class LocalPath(click.Path):
    """A path on this machine.  A URL is refused, since as a path it would be a folder called `s3:`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(path_type=Path, **options)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if is_url(value):
            self.fail(f"{value} is a URL; only paths on this machine work here", param, ctx)
        return super().convert(str(value).removeprefix("file://"), param, ctx)


config_argument = click.argument("settings", nargs=-1, metavar="[CONFIG ...] [key=value ...]")


def split(settings: tuple[str, ...]) -> tuple[list[Path], list[str]]:
    """Split arguments into config files and overrides: one with `=` that is not a file is an override.

    Raises:
        ConfigError: a config is given as a URL.
    """
    files, overrides = [], []
    for setting in settings:
        if "=" in setting and not _is_file(setting):
            overrides.append(setting)
        elif is_url(setting):
            raise ConfigError(f"{setting} is a URL; a config must be a file on this machine")
        else:
            files.append(Path(setting))
    return files, overrides


def _is_file(setting: str) -> bool:
    try:
        return Path(setting).is_file()
    except (OSError, ValueError):  # too long for a path, or has a character that no path has
        return False


def quiet_libraries() -> None:
    """Call before importing the model's libraries: users of our commands need not see their warnings."""
    import logging
    import warnings

    warnings.simplefilter("ignore")
    for library in ("DeepSpeed", "megatron.core", "torch.utils.cpp_extension"):
        logging.getLogger(library).addFilter(_is_error)  # DeepSpeed sets its level anew when it is imported


def _is_error(record: "logging.LogRecord") -> bool:
    return record.levelno >= 40  # logging.ERROR
