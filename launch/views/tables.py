"""Tables of checkpoints."""

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from pipelines.tables import table

if TYPE_CHECKING:
    from rich.table import Table

_UNITS = ("B", "kB", "MB", "GB", "TB")


def checkpoint_table(rows: Sequence[Mapping[str, Any]]) -> "Table":
    """What `brt checkpoint list` prints, from `report.row_of`."""
    cells = [
        (
            str(row["step"]),
            when(row.get("time")),
            size(row.get("bytes")),
            "-" if row.get("bits_per_token") is None else f"{row['bits_per_token']:.4f}",
            layout(row.get("saved_by")),
            row["problem"] or "yes",
        )
        for row in rows
    ]
    head = ("step", "when", "size", "bits/token", "saved by", "intact")
    return table(head, cells, right=("step", "size", "bits/token"))


def checkpoint_description(found: Mapping[str, Any]) -> tuple["Table", "Table"]:
    """What `brt checkpoint show` prints, from `report.describe`: facts, and tensors."""
    facts = [
        ("checkpoint", f"{found['place']}/{found['checkpoint']}"),
        ("when", when(found["time"])),
        ("saved by", layout(found["saved_by"])),
        ("step", f"{found['step']} ({found['updates']} updates, {found['tokens']:,} tokens)"),
        ("streams", str(found["streams"])),
        ("dataset", found["dataset"][:12]),
        *((f"bits/token {name}", f"{value:.4f}") for name, value in found["evaluations"].items()),
        ("versions", ", ".join(f"{name} {version}" for name, version in found["versions"].items())),
        *((kind, f"{count['tensors']} tensors, {size(count['bytes'])}") for kind, count in found["kinds"].items()),
    ]
    tensors = [(name, entry["dtype"], shape(entry["shape"])) for name, entry in found["tensors"].items()]
    return table(("", ""), facts), table(("tensor", "type", "shape"), tensors)


def when(seconds: float | None) -> str:
    """A unix time as local time."""
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M:%S") if seconds else "-"


def size(count: int | None) -> str:
    """A number of bytes in a readable unit."""
    if count is None:
        return "-"
    unit = min(int(math.log10(max(count, 1))) // 3, len(_UNITS) - 1)
    return f"{count / 1000**unit:.{1 if unit else 0}f} {_UNITS[unit]}"


def shape(sizes: Sequence[int]) -> str:
    return "x".join(map(str, sizes)) or "scalar"


def layout(saved_by: Mapping[str, Any] | None) -> str:
    """A layout in short, as `tp2 pp2 zero1`."""
    if not saved_by:
        return "-"
    names = {"tensor": "tp", "pipeline": "pp", "data": "dp"}
    parts = [f"{short}{saved_by[name]}" for name, short in names.items() if saved_by.get(name, 1) != 1]
    parts += [f"zero{saved_by['zero_stage']}"] if "zero_stage" in saved_by else []
    parts += ["sequence"] if saved_by.get("sequence_parallel") else []
    return " ".join(parts)
