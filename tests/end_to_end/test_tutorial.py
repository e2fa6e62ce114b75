"""docs/tutorial.md as a reader follows it: every command runs, and prints what the tutorial shows."""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TUTORIAL = ROOT / "docs" / "tutorial.md"
CHECKOUT = "/home/me/brt"  # where the tutorial is followed
SECONDS = 500.0  # for all of it; a minute and a half on two idle cores


@dataclass(frozen=True)
class Block:
    """Commands, and the output shown below them; empty if none is."""

    commands: str
    shown: str


def blocks(text: str) -> list[Block]:
    """Fenced blocks of `sh`, each with the block without a language that follows it, if one does."""
    found = re.findall(r"^```([a-z]*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert {language for language, _ in found} == {"sh", ""}
    following = [*found[1:], ("sh", "")]
    return [
        Block(content, shown if not after else "")
        for (language, content), (after, shown) in zip(found, following, strict=True)
        if language == "sh"
    ]


def lines(text: str) -> list[str]:
    """Without what may differ: numbers, hexadecimal digests, the width of columns, borders of tables."""
    text = re.sub(r"[─-╿]", " ", text)
    text = re.sub(r"\b[0-9a-f]{12,}\b|\d+(?:[,.:]\d+)*", "N", text)
    return [" ".join(line.split()) for line in text.splitlines() if line.strip()]


def missing(shown: str, output: str) -> str | None:
    """The first line of `shown` that is not in `output` in its place; lines of `...` stand for any others."""
    came, at, follows = lines(output), 0, False
    for line in lines(shown):
        if line == "...":
            follows = False
            continue
        try:
            found = came.index(line, at)
        except ValueError:
            return line
        if follows and found != at:
            return f"{line} (directly after {came[at - 1]})"
        at, follows = found + 1, True
    return None


def test_lines_are_compared_but_for_numbers() -> None:
    output = "start\nloss 5.125 at 3\n┃ a ┃  12 ┃\nend\n"
    for shown in ("loss 1.0 at 4", "...\nloss 1.0 at 4\n...\nend\n", "loss 1 at 1\na 1,024\nend"):
        assert missing(shown, output) is None
    assert missing("loss 1.0", output) == "loss N"
    assert missing("end\nstart", output) == "start"
    assert missing("start\nend", output) == "end (directly after start)"


@pytest.mark.slow
def test_every_command_runs_and_prints_what_is_shown(tmp_path: Path) -> None:
    (tmp_path / "tests").symlink_to(ROOT / "tests")  # the tutorial starts in a checkout
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "COLUMNS": "120",
    }
    steps = blocks(TUTORIAL.read_text())
    assert len(steps) > 8
    for block in steps:
        done = subprocess.run(
            ["bash", "-e", "-o", "pipefail", "-c", block.commands],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        output = done.stdout.replace(str(tmp_path), CHECKOUT)
        assert done.returncode == 0, f"{block.commands}\n{output[-3000:]}"
        absent = missing(block.shown, output)
        assert absent is None, f"{block.commands}\ndoes not print: {absent}\nbut:\n{output[-3000:]}"
