"""What a launcher knows about the datasets of a run, from dataset.json; datasets at URLs are read only by the ranks."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from brt_dist.reading import read_json
from launch.run.redact import redact

# Folder names that say what a dataset is for, not what it is.
_PURPOSES = ("train", "training", "validation", "valid", "val", "heldout", "held_out", "test", "dev", "data", "shards")


def dataset_record(place: Path | str) -> Mapping[str, Any]:
    """The content of dataset.json; empty for a URL, or if it cannot be read."""
    if not isinstance(place, Path):
        return {}
    try:
        record = read_json(place / "dataset.json")
    except (OSError, ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def dataset_tokens(place: Path | str) -> int | None:
    """Tokens of a dataset, if they are known here."""
    tokens = dataset_record(place).get("tokens")
    return tokens if isinstance(tokens, int) and tokens > 0 else None


def dataset_name(place: Path | str) -> str:
    """A name that says what the dataset is: `books/train`, not `train`."""
    text = redact(str(place)).partition("?")[0].rstrip("/")
    parts = [part for part in text.rpartition("://")[2].split("/") if part]
    kept = parts[-1:]
    while kept and kept[0].lower() in _PURPOSES and len(kept) < len(parts):
        kept = parts[-len(kept) - 1 :]
    return "/".join(kept) or text
