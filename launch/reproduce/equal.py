"""Rows with equal numbers of parameters, by the width of their MLPs: the paper's own sizes differ by up to a layer."""

from collections.abc import Sequence
from dataclasses import replace

from brt_dist.config.schema import Config
from brt_dist.errors import ConfigError
from brt_dist.planning.parameters import stage_parameters
from launch.reproduce.kit import Row, base

_ONE_RANK = ["parallel.data=1", "model.vocab_size=256"]  # the embedding is the same for all rows


def with_equal_parameters(rows: Sequence[Row], scale: str, more: Sequence[str] = ()) -> list[Row]:
    """The rows, with the MLP widths that come closest to the parameters of the scale's base, Rec:fixed:skip.

    Args:
        rows: of a table.
        scale: of the rows.
        more: settings for all rows.

    Raises:
        ConfigError: a row has more parameters without any MLP.
    """
    return [_with_parameters(row, _count(base(scale, [*more, *_ONE_RANK])), more) for row in rows]


def _with_parameters(row: Row, count: int, more: Sequence[str]) -> Row:
    narrow, wide = (_count(row.config([*more, *_widths(width), *_ONE_RANK])) for width in (1, 2))
    width = 1 + round((count - narrow) / (wide - narrow))  # the count is linear in the width
    if width < 1:
        raise ConfigError(f"{row.name} has more than {count:,} parameters even with the narrowest MLP; leave it out")
    return replace(row, overrides=(*row.overrides, *_widths(width)))


def _widths(width: int) -> list[str]:
    return [f"model.ffns.relu.width={width}", f"model.mixers.recurrent.mlp_width={width}"]


def _count(config: Config) -> int:
    return sum(matrix.size for matrix in stage_parameters(config, 0))
