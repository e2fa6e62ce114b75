"""The dataset card: README.md for people, card.json for programs, lengths.png.

All of it follows from the dataset, except `built` (the duration and speed of the last build that wrote shards).
"""

import json
from pathlib import Path
from typing import Any

from brt_dist.data.format import BUILD_FILE
from brt_dist.files import write_atomic
from brt_dist.reading import read_json
from pipelines.build import BuildReport
from pipelines.sources.documents import printable
from pipelines.statistics import plot_lengths, statistics

CARD_FILE, README_FILE, LENGTHS_FILE = "card.json", "README.md", "lengths.png"
_MARK = "<!-- written by brt data build -->"


def write_card(report: BuildReport) -> dict[str, Any]:
    """Write the card of a dataset and return card.json.  A README.md not written by a build is left alone."""
    folder = report.folder
    found = statistics(folder)
    before = _read(folder / CARD_FILE)
    if report.written_shards or before.get("digest") != found["digest"]:
        built: Any = {"seconds": round(report.seconds, 3), "tokens_per_second": round(report.tokens_per_second, 1)}
    else:
        built = before.get("built")
    card = {**found, "lossy": _read(folder / BUILD_FILE).get("lossy"), "built": built}
    plot_lengths(found, folder / LENGTHS_FILE)
    write_atomic(folder / CARD_FILE, json.dumps(card, indent=1) + "\n")
    readme = folder / README_FILE
    if not readme.exists() or readme.read_bytes().startswith(_MARK.encode()):
        write_atomic(readme, _text(printable(folder.name), card))
    return card


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(read_json(path))
    except (OSError, ValueError, TypeError):
        return {}


def _text(name: str, card: dict[str, Any]) -> str:
    lengths = card["document_tokens"]
    lines = [
        _MARK,
        f"# Dataset {name}",
        "",
        f"{card['documents']:,} documents, {card['tokens']:,} tokens ({card['bytes_per_token']:.2f} bytes of text "
        f"per token), {card['shards']} shards.",
        "",
        f"* digest `{card['digest']}`",
        f"* tokenizer `{card['tokenizer']['kind']}`, {card['vocab_size']:,} tokens, "
        f"sha256 `{card['tokenizer']['sha256']}`",
        *([f"* the tokenizer loses text: {card['lossy']}"] if card["lossy"] else []),
        *([f"* built at {card['built']['tokens_per_second']:,.0f} tokens/s"] if card["built"] else []),
        "",
        "| source | documents | tokens | share | left out |",
        "|---|---:|---:|---:|---|",
        *(
            f"| {source['name']} | {source['documents']:,} | {source['tokens']:,} | {source['share']:.1%} | "
            f"{_reasons(source['skipped'])} |"
            for source in card["sources"]
        ),
        "",
        "Tokens per document: " + ", ".join(f"{key} {value:,.0f}" for key, value in lengths.items()) + ".",
        "",
        f"![document lengths]({LENGTHS_FILE})",
    ]
    return "\n".join(lines) + "\n"


def _reasons(skipped: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in sorted(skipped.items())) or "-"
