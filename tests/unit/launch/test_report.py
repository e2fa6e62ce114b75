"""The report of a run, from the files of a run."""

import json
import os
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from click.testing import CliRunner

from launch.cli import brt
from launch.report.charts import Curve, chart
from launch.report.collect import RunFacts, labels
from launch.report.page import write_report
from launch.report.sweep import Swept, SweptRun, parallel, sweep_table
from launch.views.smoothing import settled, smooth
from tests.run_files import CONFIG, write_run


class Page(HTMLParser):
    """Tags that load or run something, the text, and tags that were not closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.loads: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        assert self._open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [f"{tag} {name}={value}" for name, value in attributes if name in ("src", "href", "onload")]
        if tag not in ("meta", "br", "input"):
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data + " "


def report(*runs: Path) -> str:
    done = CliRunner().invoke(brt, ["report", *map(str, runs), "--json"])
    assert done.exit_code == 0, done.output
    return Path(json.loads(done.stdout)["report"]).read_text()


def test_a_page_that_needs_nothing_else(tmp_path: Path) -> None:
    html = report(write_run(tmp_path))
    page = Page(html)
    for known in ("http://***@host", "http://www.w3.org/2000/svg"):  # a setting, and the name of SVG in the script
        html = html.replace(known, "")
    assert page.loads == [] and "http" not in html
    assert page.tags.count("figure") == 10
    for said in (
        "40 of 40",
        "4.250",  # held out, carried
        "+0.250",  # gain of memory
        "1,234",  # parameters
        "4.000 bits/token",
        "4.2500",
        "rank 1 was killed",
        "retry: 2 more",
        "2.0 MB",
        "my.yaml:2",
        "layer 3",
        "unknown for cpu",
        "500 at most",
        "499, rank 0",
        "6.1 MB, rank 0",
        "64 with a target",
    ):
        assert said in page.text, said
    assert "tensor 2 x pipeline 1 x data 2" in page.text and "slow<host>" in page.text
    assert "hunter2" not in html


def test_the_curve_is_that_of_the_events(tmp_path: Path) -> None:
    """Points of the loss, read back from the picture by the marks of its axis."""
    html = report(write_run(tmp_path))
    svg = html[html.index("<figcaption><b>Loss</b>") :]
    svg = svg[: svg.index("</svg>")]
    (line,) = re.findall(r'<polyline class="c0" points="([^"]*)"', svg)
    points = [tuple(map(float, point.split(","))) for point in line.split()]
    assert len(points) == 40  # the steps that were done twice are there once
    marks = [
        (float(y) - 4, float(v))
        for y, v in re.findall(r'<text class="row" x="59" y="([\d.]+)"[^>]*>([\d.]+)</text>', svg)
    ]
    (y0, v0), (y1, v1) = marks[0], marks[-1]
    bits = [v0 + (y - y0) * (v1 - v0) / (y1 - y0) for _, y in points]
    assert bits == pytest.approx([8.0 - step / 10 for step in range(1, 41)], abs=0.02)
    assert svg.count('class="event"') == 1 and "attempt 2 after: rank 1 was killed" in svg


def test_loss_by_position_is_drawn_with_the_bins_below_it(tmp_path: Path) -> None:
    html = report(write_run(tmp_path))
    figure = html[html.index("Loss by position in the document") :]
    figure = figure[: figure.index("</figure>")]
    marks = {name: float(x) for x, name in re.findall(r'<text x="([\d.]+)" y="230" [^>]*>([^<]*)</text>', figure)}
    assert list(marks) == ["0", "64", "256"]
    dots = re.findall(r'<circle class="(c\d)" cx="([\d.]+)"[^>]*><title>([^<]*)</title>', figure)
    assert [float(x) for colour, x, _ in dots if colour == "c3"] == pytest.approx(list(marks.values()))
    # the axis doubles: from 128 to 512 there are twice as many steps as from 64 to 128
    first, second, last = marks.values()
    assert last - second == pytest.approx(2 * (second - first), abs=0.2)
    assert "held-out text, memory carried" in dots[0][2] and "5.049 bits/token" in dots[0][2]


def test_names_are_no_markup(tmp_path: Path) -> None:
    html = report(write_run(tmp_path, name="<script>alert(1)</script>&amp;"))
    assert Page(html).tags.count("script") == 2 and "&lt;script&gt;" in html  # those of the page itself
    assert "<script>alert" not in html


def test_several_runs_and_runs_that_have_not_begun(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.mkdir(), second.mkdir()
    run = write_run(first)
    empty = second / "run"
    empty.mkdir()
    (empty / "config.yaml").write_text(CONFIG.format(data=second, run=empty, name="empty"))
    page = Page(report(run, empty))
    assert "2 runs" in page.text and "not started" in page.text and "no steps yet" in page.text
    done = CliRunner().invoke(brt, ["report", str(second)], standalone_mode=False)
    assert "is not a run directory" in str(done.exception)


def test_a_chart_has_the_axis_of_the_others(tmp_path: Path) -> None:
    """All begin at zero and end at the last step, also if the curve ends before; a share of zero is at the bottom."""
    text = (write_run(tmp_path) / "metrics.jsonl").read_text()
    layers = [{"layer": 1, "state_rms": 0.0}]
    memory = {"event": "memory", "time": 220.0, "attempt": 2, "step": 20, "layers": layers}
    (tmp_path / "run" / "metrics.jsonl").write_text(text + json.dumps(memory) + "\n")
    source = report(tmp_path / "run")
    ends = {float(end) for end in re.findall(r'data-last="([^"]*)"', source)}
    assert "Size of the states" in source and ends == {40.0}
    svg = chart("zero", [Curve("share", [(1.0, 0.0), (2.0, 0.0)])], "share")
    assert ">0.0<" in svg and ">-0." not in svg


def test_charts_of_odd_numbers() -> None:
    assert chart("none", [Curve("a", [])], "x") == "" == chart("nan", [Curve("a", [(1, float("nan"))])], "x")
    for points in ([(1.0, 0.0)], [(1.0, 5.0), (2.0, 5.0)], [(0.0, -1e-9), (1.0, 1e9)]):
        Page(chart("odd", [Curve("a", points)], "x"))
    peak = [(float(n), 0.0 if n != 7777 else 9.0) for n in range(20_000)]
    svg = chart("long", [Curve("a", peak)], "x")
    (line,) = re.findall(r'points="([^"]*)"', svg)
    heights = [float(point.split(",")[1]) for point in line.split()]
    assert len(heights) <= 500 and min(heights) < 30  # thinned out, and the peak is there


def test_the_first_tile_and_figure_tell_what_memory_gains(tmp_path: Path) -> None:
    html = report(write_run(tmp_path))
    tile = html[html.index('class="tile first"') :]
    numbers = re.findall(r"<b>([^<]*)</b>", tile[: tile.index('class="tile"')])
    assert numbers == ["4.250", "4.500", "+0.250"]
    figure = html[html.index("What memory gains") :]
    assert 'data-name="held-out text" data-run="0" data-x="40" data-y="0.25"' in figure[: figure.index("</figure>")]


def test_a_state_that_is_ignored_is_told_at_the_top(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    assert "the state is worth" not in report(run)
    cleared = {"event": "evaluation", "step": 40, "dataset": "validation", "memory": "state cleared", "time": 251.0}
    warning = {"event": "ignored_state", "step": 40, "bits": 0.0004, "least": 0.001, "time": 252.0}
    with open(run / "metrics.jsonl", "a") as events:
        events.write(json.dumps({**cleared, "bits_per_token": 4.2504}) + "\n")
    page = report(run)
    assert "the state is worth</span><b>+0.000 bits/token</b>" in page
    with open(run / "metrics.jsonl", "a") as events:
        events.write(json.dumps(warning) + "\n")
    page = report(run)
    assert 'the state is worth</span><b><span class="bad">+0.000 bits/token</span>' in page and "ignored_state" in page


def test_an_evaluation_is_one_row(tmp_path: Path) -> None:
    html = report(write_run(tmp_path))
    table = html[html.index("<h2>Evaluations") :]
    (row,) = re.findall(r"<tr>(<td.*?)</tr>", table[: table.index("</table>")])
    assert re.findall(r">([^<>]+)</td>", row) == ["40", "4.2500", "4.5000", "+0.2500"]


def test_samples_keep_their_line_breaks(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    with open(run / "metrics.jsonl", "a") as file:
        sample = {"document": 1, "prompt": "To be\n\nor", "text": "not\nto be"}
        event = {"event": "sample", "time": 1.0, "attempt": 2, "step": 40, "samples": [sample]}
        file.write(json.dumps(event) + "\n")
    html = report(run)
    assert '<table class="text">' in html and "To be\n\nor" in html and "not\nto be" in html
    assert "table.text td { white-space: pre-wrap;" in html


def test_settings_are_open_and_defaults_folded(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    (run / "provenance.json").write_text(json.dumps({"run.steps": "my.yaml:2", "model.width": "default"}))
    html = report(run)
    folded = html[html.index("<details>") : html.index("</details>")]
    assert "model.width" in folded and "my.yaml:2" not in folded and "my.yaml:2" in html


def test_runs_of_one_name_are_told_apart_by_their_directories(tmp_path: Path) -> None:
    runs = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        runs.append(write_run(tmp_path / name))
    page = Page(report(*runs))
    assert "tiny (a/run)" in page.text and "tiny (b/run)" in page.text
    facts = [RunFacts.of(run) for run in runs]
    assert labels([facts[0], replace(facts[1], name="other")]) == ["tiny", "other"]


def test_time_and_tokens_of_steps_leave_out_the_pauses_between_attempts(tmp_path: Path) -> None:
    scales = RunFacts.of(write_run(tmp_path)).scales()
    assert scales["step"][:2] == [0.0, 1] and scales["step"][-1] == 40 and scales["tokens"][-1] == 40 * 64
    # step 1 takes 0.1 s, 2 to 10 one second each; the attempt that continues from 10 begins a minute later
    assert scales["hours"][-1] * 3600 == pytest.approx(0.1 + 9 + 0.1 + 29, abs=0.05)


def test_a_sweep_is_a_table_and_parallel_coordinates() -> None:
    runs = [
        SweptRun("a", {"optimizer.learning_rate": "0.001", "model.gate": "fixed"}, "finished", 40, 3.0, 4.5),
        SweptRun("b", {"optimizer.learning_rate": "0.01", "model.gate": "lstm"}, "finished", 40, 2.9, 4.25),
        SweptRun("c", {"optimizer.learning_rate": "0.1", "model.gate": "lstm"}, "diverged", 7, None, None),
    ]
    sweep = Swept("Sweep", runs, "b")
    rows = sweep_table(sweep).rows
    assert (
        [row[0] for row in rows] == ["0.01", "0.001", "0.1"] and rows[0][-1] == "4.2500 (best)" and rows[2][-1] == "-"
    )
    svg = parallel(sweep)
    lines = {text: points.split() for points, text in re.findall(r'points="([^"]*)"><title>([^<]*)</title>', svg)}
    assert len(lines) == 2 and svg.count('class="c1 best"') == 1
    best, other = lines["learning_rate 0.01, gate lstm: 4.2500 bits/token"], lines[next(iter(lines))]
    assert len(best) == 3 and best[0] != other[0]
    assert float(best[-1].split(",")[1]) > float(other[-1].split(",")[1])  # the lower loss is lower
    assert parallel(Swept("one", runs[:1], "a")) == ""


def test_smoothing_keeps_the_ends_and_invents_no_value() -> None:
    falling = [10 / (1 + n) + (0.3 if n % 2 else -0.3) for n in range(400)]
    found = smooth(falling)
    assert (found[0], found[-1]) == (pytest.approx(falling[0]), pytest.approx(falling[-1]))
    assert all(min(falling) <= value <= max(falling) for value in found)
    assert smooth([float(n) for n in range(300)]) == pytest.approx([float(n) for n in range(300)])  # a line stays
    assert max(abs(value) for value in smooth([(-1.0) ** n for n in range(400)])[20:-20]) < 0.1


def test_the_height_of_a_plot_is_that_of_the_steps_after_the_warm_up() -> None:
    curve = [(float(step), 11.0 if step <= 20 else 9.0) for step in range(1, 121)]
    assert {y for _, y in settled(curve, 20)} == {9.0}
    assert settled(curve[:25], 20) == curve[:25]  # still warming up: everything counts
    html = chart("Loss", [Curve("a", curve, counts=settled(curve, 20))], "bits/token")
    marks = [float(text) for text in re.findall(r'<text class="row"[^>]*>([\d.]+)</text>', html)]
    assert marks and max(marks) < 10


def test_labels_of_an_axis_are_never_the_same_twice() -> None:
    for values in ([0.49932, 0.49945], [1234.5, 1234.9], [1e-7, 3e-7], [0.0, 1.0], [-0.02, 0.02]):
        html = chart("a", [Curve("a", list(enumerate(values)))], "x")
        marks = re.findall(r'<text class="row"[^>]*>([^<]*)</text>', html)
        assert len(marks) >= 2 and len(set(marks)) == len(marks), marks


def test_labels_of_steps_are_whole_numbers() -> None:
    columns = re.compile(r'<g class="columns">(.*?)</g>', re.S)
    for last, texts in ((3, ["0", "1", "2", "3"]), (40, ["0", "10", "20", "30", "40"])):
        (group,) = columns.findall(chart("a", [Curve("a", [(1.0, 2.0), (float(last), 1.0)])], "x"))
        assert re.findall(r">([^<>\s]+)</text>", group) == texts


def test_a_folder_whose_name_is_no_text_has_a_report(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe"))
    folder.mkdir()
    run = write_run(tmp_path)
    moved = run.rename(folder / "run")
    assert "\\udcff" in write_report([moved], tmp_path / "report.html").read_text()
