"""The live view of a run, from the files of a run."""

import json
import socket
from pathlib import Path

from click.testing import CliRunner
from rich.console import Console

from brt_dist.config.schema import RunConfig
from launch.cli import brt
from launch.run.claim import claimed
from launch.views.watch import Watch, sparkline
from tests.run_files import CONFIG, write_run

LENGTH = RunConfig(directory=Path("run"), steps=40)


def test_the_live_view(tmp_path: Path) -> None:
    run = write_run(tmp_path, ended=False)
    view = Watch(run, LENGTH, Console(), clock=lambda: 300.0)
    view.update()
    said = dict(view.lines())
    assert said["checkpoint"] == "step 40, 0:50 ago" and said["last step"] == "1:00 ago"
    assert said["step"] == "0.1 s, of which 20% waiting for data"
    assert (
        said["attempt 1"] == "lost a rank or a node: rank 1 was killed  [here]"
        and said["attempt 2"] == "running  [here]"
    )
    assert not view.is_over


def test_a_launcher_that_was_killed_is_told_and_ends_the_watching(tmp_path: Path) -> None:
    run = write_run(tmp_path, ended=False)
    path = run / "attempts" / "002" / "attempt.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "host": socket.gethostname()}))
    view = Watch(run, LENGTH, Console(), clock=lambda: 300.0)
    with claimed(run):  # as a launcher does
        assert not view.is_over and "launcher" not in dict(view.lines())
        assert json.loads(CliRunner().invoke(brt, ["status", str(run), "--json"]).stdout)["verdict"] == "running"
    assert view.is_over and dict(view.lines())["launcher"].startswith("was killed")
    done = CliRunner().invoke(brt, ["status", str(run), "--watch"])
    assert done.exit_code == 0 and "launcher: was killed" in done.stderr
    assert done.stdout.startswith("launcher gone: attempt 2, step 40 of 40; run the same command again, or brt resume")


def test_a_run_that_has_not_begun_is_waited_for(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(CONFIG.format(data=tmp_path, run=run, name="new"))
    view = Watch(run, LENGTH, Console())
    assert not view.is_over and ("", "not started yet; waiting for the first attempt") in view.lines()
    (tmp_path / "other").mkdir()
    for part in write_run(tmp_path / "other").iterdir():
        if part.name != "config.yaml":
            part.rename(run / part.name)
    view.update()
    assert view.is_over and "step 40/40" in view.lines()[0][1]


def test_a_run_that_was_submitted_again_is_waited_for(tmp_path: Path) -> None:
    """Right after `brt resume`, the last attempt is still the one that has ended."""
    run = write_run(tmp_path)
    asked: list[float] = []
    waiting = [True, False]

    def is_expected(since: float) -> bool:
        asked.append(since)
        return waiting.pop(0)

    view = Watch(run, LENGTH, Console(), is_expected=is_expected)
    assert not view.is_over and view.is_over
    assert asked == [260.0, 260.0]  # when the last attempt ended
    with claimed(run):  # a launcher that has not begun its attempt
        assert not Watch(run, LENGTH, Console()).is_over


def test_watching_a_run_that_is_over_says_where_it_ended(tmp_path: Path) -> None:
    done = CliRunner().invoke(brt, ["status", str(write_run(tmp_path)), "--watch", "--json"])
    assert done.exit_code == 0 and json.loads(done.stdout)["verdict"] == "finished"
    assert "step 40/40" in done.stderr


def test_sparklines() -> None:
    assert sparkline([]) == "" and sparkline([1.0, 1.0]) == "▁▁"
    assert sparkline([0.0, 1.0]) == "▁█"
    falling = sparkline([float(n) for n in range(1000, 0, -1)], 8)
    assert falling == "█▇▆▅▄▃▂▁"
