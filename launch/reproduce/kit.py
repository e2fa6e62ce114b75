"""The kit in `reproduce/`: tables, rows, scales, data recipes, and the paper's figures.

A table is a folder with a config for each row, which holds only what differs from the base, the paper's 150M model.  A
scale is a config with other sizes for the base; a row keeps its ratios to the base: XL:1024 has twice the base's window
at any scale, and Slide:13L one layer more.
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field

from brt_dist.config.loading import load
from brt_dist.config.schema import Config
from brt_dist.config.section import Section
from brt_dist.errors import ConfigError

ROOT = Path(__file__).parents[2]
KIT = ROOT / "reproduce"
BASE = ROOT / "examples" / "paper_150m.yaml"
_NOT_TABLES = ("data", "scales")
# Sizes whose ratio to the base a row keeps at every scale.
_RATIOS = ("model.window", "model.mixers.recurrent.states", "data.segment", "data.streams", "parallel.micro_batch")
_NOWHERE = ("data.dataset=unused", "run.directory=unused/run")


class SmallData(Section):
    """The data that the scales below the paper's read."""

    corpus: Literal["books", "code"] = Field(description="of `brt data corpus`")
    tokenizer: str = Field(description="of `brt data build`")


class Recipe(Section):
    """Where data comes from.

    `about`, `column` and `vocabulary` describe the paper's data; `public` and `local` are command lines.
    """

    about: str = Field(description="what the text is")
    column: str = Field(description="the paper's column for it, in expected.yaml")
    vocabulary: int = Field(description="size of the paper's vocabulary")
    small: SmallData | None = Field(description="a corpus that any machine can have")
    public: str = Field(description="commands that make the paper's data from its public source")
    local: str = Field(description="commands that make it from a local FOLDER")


@dataclass(frozen=True)
class Figure:
    """A figure of the paper.

    Attributes:
        sureness: `agreed`, `one note`, `disputed` or `unverified`; see reproduce/expected.yaml.
    """

    value: float
    sureness: str


@dataclass(frozen=True)
class Row:
    """A row of a table at a scale: a model to train.

    Attributes:
        name: as the paper has it.
        key: of its folder.
        sources: its config files.
        overrides: the settings that bring it to the scale.
    """

    name: str
    key: str
    sources: tuple[Path, ...]
    overrides: tuple[str, ...]

    def config(self, more: Sequence[str] = ()) -> Config:
        return load(self.sources, [*_NOWHERE, *self.overrides, *more]).config


def tables() -> tuple[str, ...]:
    """Names of all tables."""
    return tuple(path.name for path in sorted(KIT.iterdir()) if path.is_dir() and path.name not in _NOT_TABLES)


def scales() -> tuple[str, ...]:
    return tuple(path.stem for path in sorted((KIT / "scales").glob("*.yaml")))


def recipes() -> tuple[str, ...]:
    """Names of all data recipes."""
    return tuple(path.stem for path in sorted((KIT / "data").glob("*.yaml")))


def recipe(name: str) -> Recipe:
    return Recipe.model_validate(_read(KIT / "data" / f"{name}.yaml"))


def rows(table: str, scale: str, only: Sequence[str] = ()) -> list[Row]:
    """The rows of a table.

    Args:
        table: one of `tables()`.
        scale: one of `scales()`.
        only: names or patterns (`Rec:*`) of rows; none: all.

    Raises:
        ConfigError: a pattern fits no row.
    """
    found = [_row(path, scale) for path in sorted((KIT / table).glob("*.yaml"))]
    for pattern in only:
        if not any(fnmatchcase(row.name, pattern) for row in found):
            names = [row.name for row in found]
            near = difflib.get_close_matches(pattern[:200], names, n=1)
            told = f"nearest: {near[0]}" if near else f"rows: {', '.join(names)}"
            raise ConfigError(f"{table} has no row {pattern[:80]!r}; {told}")
    return [row for row in found if not only or any(fnmatchcase(row.name, pattern) for pattern in only)]


def expected(column: str) -> dict[str, Figure]:
    """The paper's figures in a column of Table 1, by row; rows without one are left out."""
    return {
        name: Figure(**{key: row[column][key] for key in ("value", "sureness")})
        for name, row in _read(KIT / "expected.yaml")["rows"].items()
        if column in row
    }


def known_parameters() -> dict[str, float]:
    """Parameters of the rows of Table 1 without the token embedding, in millions."""
    return {name: row["parameters"] for name, row in _read(KIT / "expected.yaml")["rows"].items()}


def claim(table: str) -> str | None:
    """What the paper says about an ablation."""
    found: str | None = _read(KIT / "expected.yaml")["claims"].get(table)
    return found


def base(scale: str, more: Sequence[str] = ()) -> Config:
    """The base at a scale: the model that rows differ from."""
    return load([BASE, KIT / "scales" / f"{scale}.yaml"], [*_NOWHERE, *more]).config


def _row(path: Path, scale: str) -> Row:
    scale_file = KIT / "scales" / f"{scale}.yaml"
    unchanged, wanted = (load([BASE, *more], _NOWHERE).config for more in ([], [path]))
    return Row(wanted.run.name, path.stem, (BASE, scale_file, path), tuple(_scaled(unchanged, wanted, base(scale))))


def _scaled(unchanged: Config, wanted: Config, scaled: Config) -> list[str]:
    """Overrides that give `wanted` the sizes of `scaled`, keeping its own ratios to `unchanged`."""
    layers = scaled.model.layers + wanted.model.layers - unchanged.model.layers
    found = [f"model.layers={layers}"]
    for key in _RATIOS:  # all of them, because a row may also set a size to the base's value
        old, new, own = (_value(config, key) for config in (unchanged, wanted, scaled))
        found.append(f"{key}={own * new // old}")
    old, new, own = (_value(config, "model.mixers.recurrent.layers") for config in (unchanged, wanted, scaled))
    places = own if new == old else _spread(new, wanted.model.layers, layers)
    return [*found, f"model.mixers.recurrent.layers={list(places)}"]


def _spread(indices: Sequence[int], of: int, layers: int) -> list[int]:
    """The layers of a stack of `layers` at the relative places of `indices` in a stack of `of`; each layer once."""
    found, above = list[int](), layers
    for index in sorted((index % of for index in indices), reverse=True):
        above = min(index * layers // of, above - 1)
        found.insert(0, above)
    return found


def _value(config: Config, key: str) -> Any:
    found: Any = config
    for part in key.split("."):
        found = found[part] if isinstance(found, Mapping) else getattr(found, part)
    return found


def _read(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: no such file; brt reproduce needs a checkout of the repository, whose folder reproduce/ it reads"
        ) from None
