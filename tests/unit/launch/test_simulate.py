"""`brt simulate`: what it prints, draws and refuses."""

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from brt_dist.errors import ConfigError, PlatformError
from brt_dist.planning.simulator.disturbance import Disturbance
from brt_dist.planning.simulator.seconds import StageSeconds
from brt_dist.planning.simulator.step import simulate_step
from launch.commands.simulate import simulate
from launch.views.timeline import timeline_html
from tests.unit.test_docs import ROOT

SEVENTY = [str(ROOT / "examples" / "scale_70b.yaml"), "model.vocab_size=131072", "data.streams=128"]


def run(*arguments: str) -> Any:
    result = CliRunner().invoke(simulate, [*SEVENTY, *arguments], catch_exceptions=False)
    assert result.exit_code == 0
    return result


def test_json_has_step_scaling_and_goodput(tmp_path: Path) -> None:
    timeline, plot = tmp_path / "step.json", tmp_path / "plot.png"
    found = json.loads(run("--json", "--timeline", str(timeline), "--plot", str(plot)).stdout)
    assert len(found["step"]["busy"]) == 8 and found["step"]["micro_batches"] == 16
    assert max(found["step"]["busy"]) < found["step"]["seconds"]
    assert {point["gpus"] for point in found["scaling"]["weak"]} == {64 * 2**i for i in range(9)}
    assert [kept["gpus"] for kept in found["goodput"]][-1] == 16384
    assert found["failures"]["per_gpu_hour"] == pytest.approx(1.97e-5, rel=0.01)
    ends = [one["end"] for one in json.loads(timeline.read_text())]
    assert max(ends) == pytest.approx(found["step"]["seconds"])
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_without_failures_json_has_no_infinity() -> None:
    found = json.loads(run("--json", "--failures", "0").stdout, parse_constant=pytest.fail)
    assert all(kept["goodput"]["lost"] == 0 and kept["hours_between"] is None for kept in found["goodput"])


def test_a_straggler_a_slow_link_and_jitter_make_a_step_longer() -> None:
    options = [["--straggler", "3:1.5"], ["--straggler", "3:1.5", "--slow-link", "6:50", "--jitter", "0.05"]]
    steps = [json.loads(run("--json", *given).stdout)["step"] for given in ([], *options)]
    seconds = [step["seconds"] for step in steps]
    assert seconds == sorted(seconds) and seconds[1] > 1.1 * seconds[0]
    assert [step["replicas_simulated"] for step in steps] == [1, 8, 8]


def test_people_get_tables_that_name_the_source_of_the_failures() -> None:
    text = run("--failures", "rsc1").stdout
    assert "strong scaling" in text and "arXiv 2410.21680" in text and "16,384" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--straggler", "8:2"], "--straggler 8:2: parallel.pipeline=8 has stages 0 to 7"),
        (["--slow-link", "7:2"], "--slow-link 7:2: parallel.pipeline=8 has stages 0 to 6"),
        (["--straggler", "1:inf"], "FACTOR must be positive"),
        (["--failures", "nan"], "--failures nan is neither a number"),
        (["--failures", "inf"], "--failures inf is neither a number"),
        (["--straggler", "slow"], "nearest: --straggler 0:1.5"),
        (["--failures", "often"], "--failures often is neither a number nor llama3"),
        (["--device", "v100"], "unknown device 'v100'; known: a100, h100"),
        (["model.vocab_size=null"], "nearest: model.vocab_size=32000"),
        (["parallel.tensor=3"], "nearest layout"),
    ],
)
def test_mistakes_are_answered_with_what_works(options: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("(", "[(]")):
        CliRunner().invoke(simulate, [*SEVENTY, *options], catch_exceptions=False)


def test_without_a_config_there_is_an_example() -> None:
    with pytest.raises(ConfigError, match="example: brt simulate"):
        CliRunner().invoke(simulate, [], catch_exceptions=False)


def test_a_timeline_that_cannot_be_written_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(PlatformError, match="cannot write"):
        run("--timeline", str(tmp_path / "file" / "step.html"))


class Rectangles(HTMLParser):
    """Counts the rectangles of each colour, and knows the texts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.colours: list[str] = []
        self.right: list[float] = []
        self.texts: list[str] = []
        self.outside: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        if tag == "rect" and (colour := given.get("fill")):
            self.colours.append(colour)
            self.right.append(float(given["x"] or 0) + float(given["width"] or 0))
        self.outside += [name for name in ("src", "href") if name in given]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_the_timeline_shows_each_interval_and_needs_nothing_else() -> None:
    step = simulate_step([StageSeconds(1.0, 2.0, 0.1, 0.5, 0.5)] * 3, 4, 2)
    drawn = Rectangles(timeline_html(step, "a <title>"))
    assert len(drawn.colours) == sum(one.seconds > 0 for one in step.intervals)
    assert drawn.colours.count("#1f5fa8") == drawn.colours.count("#2e7d4f") == 2 * 3 * 4  # forward, backward
    assert max(drawn.right) == pytest.approx(1200, abs=0.1)
    assert "a <title>" in drawn.texts and "rank 1, stage 2" in drawn.texts
    assert not drawn.outside


def test_the_timeline_of_a_long_step_says_what_it_leaves_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launch.views.timeline._MOST", 100)
    page = timeline_html(simulate_step([StageSeconds(1.0, 2.0)] * 2, 60), "long")
    assert len(Rectangles(page).colours) == 100 and "Shown are the first" in page


def test_the_timeline_of_a_step_that_hangs_says_so() -> None:
    step = simulate_step([StageSeconds(1.0, 2.0)] * 2, 4, disturbance=Disturbance(failures={(0, 1): 3.0}))
    assert "Never finished: 2 places wait forever." in timeline_html(step, "dead")
