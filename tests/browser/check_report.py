"""The report of a run in a real browser.  Run by `make test-report`, not by `make test`: it needs Chromium."""

import subprocess
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from matplotlib import image

from launch.cli import brt
from tests.unit.test_report import write_run

QUIET = ("--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync")


def screenshot(
    page: Path, folder: Path, *options: str
) -> tuple["np.ndarray[tuple[int, ...], np.dtype[np.int64]]", str]:
    """The page as the browser draws it, (height, width, 3) from 0 to 255, and what was said on its console."""
    png = folder / "page.png"
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", *QUIET, *options]
    command += [f"--user-data-dir={folder / 'profile'}", "--window-size=1300,1400", f"--screenshot={png}"]
    done = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    console = "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)
    return (image.imread(png)[..., :3] * 255).round().astype(int), console


def pixels(picture: "np.ndarray[tuple[int, ...], np.dtype[np.int64]]", colour: str) -> int:
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return int((abs(picture - wanted).max(axis=-1) < 40).sum())  # thin lines are blended with what is behind them


@pytest.fixture
def page(tmp_path: Path) -> Path:
    run = write_run(tmp_path)
    assert CliRunner().invoke(brt, ["report", str(run)]).exit_code == 0
    return run / "report.html"


def test_it_is_drawn(page: Path, tmp_path: Path) -> None:
    """Curves in their colours, the line of the second attempt, and not a word on the console."""
    picture, console = screenshot(page, tmp_path)
    assert console == ""
    assert picture.shape == (1400, 1300, 3)
    assert pixels(picture, "#f6f7f9") > 100_000  # the page around the cards
    for colour in ("#1f5fa8", "#2e7d4f", "#c2571a"):
        assert pixels(picture, colour) > 100, colour
    red, green, blue = picture[..., 0], picture[..., 1], picture[..., 2]
    assert ((red - green > 50) & (abs(green - blue) < 25)).sum() > 100  # dashes, blended with the white behind them


def test_it_is_dark_for_those_who_want_it_dark(page: Path, tmp_path: Path) -> None:
    picture, console = screenshot(page, tmp_path, "--blink-settings=preferredColorScheme=0")
    assert console == "" and pixels(picture, "#12161c") > 100_000
    assert pixels(picture, "#6fa8e8") > 100


def test_it_loads_nothing(page: Path, tmp_path: Path) -> None:
    """Whatever it would ask for goes to a port on which nobody listens, and would be on the console."""
    _, console = screenshot(page, tmp_path, "--proxy-server=127.0.0.1:9")
    assert console == ""
