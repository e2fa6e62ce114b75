"""Tables: whole where a program reads them, folded on a terminal, and what is in them is text."""

import io
import re

import pytest

from pipelines.tables import show, table, text_of

LONG = "s3://bucket/" + "x" * 300
ROWS = [("[red]a[/red]", "1", LONG), ("b", "1,000", "[1, 2]")]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_no_value_is_wrapped_cut_or_read_as_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    made = table(("name", "count", "place"), ROWS, right=("count",))
    assert text_of(made).splitlines() == [
        "name          count  place",
        f"[red]a[/red]      1  {LONG}",
        "b             1,000  [1, 2]",
    ]
    out = io.StringIO()
    show(made, out)
    assert out.getvalue() == text_of(made) + "\n"


def test_a_table_without_a_head_has_its_rows_alone() -> None:
    assert text_of(table(("", ""), [("step", "7"), ("verdict", "finished")])) == "step     7\nverdict  finished"


def test_a_terminal_folds_what_is_too_long_and_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    out = Terminal()
    show(table(("name", "place"), [("a", LONG)]), out)
    lines = re.sub(r"\x1b\[[\d;]*m", "", out.getvalue()).splitlines()
    assert len(lines) > 4 and max(map(len, lines)) <= 60
    assert "".join(lines).count("x") == LONG.count("x") and "…" not in out.getvalue()
