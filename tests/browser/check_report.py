"""The report of a run in a real browser (Chromium).  Run by `make -C tests/cluster report`, not by `make test`."""

import html
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from matplotlib import image

from launch.cli import brt
from tests.datasets import make_dataset
from tests.run_files import write_run

ROOT = Path(__file__).parents[2]
QUIET = ("--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync")


def screenshot(
    page: Path, folder: Path, *options: str, size: str = "1300,1400"
) -> tuple["np.ndarray[tuple[int, ...], np.dtype[np.int64]]", str]:
    """The page as the browser draws it, (height, width, 3) from 0 to 255, and the text on its console."""
    png = folder / "page.png"
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", *QUIET, *options]
    command += [f"--user-data-dir={folder / 'profile'}", f"--window-size={size}", f"--screenshot={png}"]
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


def asked(page: Path, folder: Path, script: str, width: int = 1300) -> dict[str, Any]:
    """The result of a script at the end of the page; the script ends with `answer(OBJECT)`."""
    code = f"""<script>
      const answer = found => {{ document.body.textContent = JSON.stringify(found); }};
      {{ {script} }}
    </script></body>"""
    copy = folder / "asked.html"
    copy.write_text(page.read_text().replace("</body>", code))
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", *QUIET, f"--window-size={width},1400"]
    command += [f"--user-data-dir={folder / 'profile'}", "--dump-dom", copy.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    body = done.stdout[done.stdout.index("<body>") + len("<body>") : done.stdout.index("</body>")]
    found: dict[str, Any] = json.loads(html.unescape(body))
    return found


def boxes(page: Path, folder: Path, width: int = 1300) -> dict[str, list[dict[str, float]]]:
    """Where the browser puts figures, images, curves and the page, in pixels."""
    script = """
      const place = r => ({x: r.x, y: r.y, width: r.width, height: r.height});
      const box = e => place(e.getBoundingClientRect());
      const all = what => [...document.querySelectorAll(what)].map(box);
      answer({page: all("main"), figure: all("figure"), svg: all("figure > svg"), window: [{width: innerWidth}],
        curve: all("polyline:not(.faint)"), dot: all("circle"), caption: all("figcaption"), text: all("figure text"),
        tile: all(".tile"), inside: all(".tile b"), scroll: [{width: document.documentElement.scrollWidth}]});
    """
    return asked(page, folder, script, width)


def overlap(one: dict[str, float], other: dict[str, float]) -> bool:
    return all(
        one[at] < other[at] + other[size] - 1 and other[at] < one[at] + one[size] - 1
        for at, size in (("x", "width"), ("y", "height"))
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a real run: two ranks, evaluations with memory carried and cleared, memory statistics."""
    folder = tmp_path_factory.mktemp("trained")
    dataset = make_dataset(folder, [f"This is document {number}. " * (40 + 30 * number) for number in range(6)]).folder
    config = folder / "config.yaml"
    config.write_text(f"""\
model: {{layers: 2, width: 16, heads: 2, head_dim: 8, mlp_width: 32, window: 8, states: 8, recurrent_layers: [0, 1]}}
data: {{dataset: {dataset}, validation: {dataset}, segment: 16, streams: 4}}
parallel: {{tensor: 2, micro_batch: 2}}
optimizer: {{warmup_steps: 2}}
run: {{name: real, directory: {folder / "run"}, steps: 20, precision: fp32, device: cpu, evaluate_every: 10,
  checkpoint_every: 10, memory_every: 5, tracking: {{enabled: false}}}}
""")
    brt_ = [sys.executable, "-m", "launch.cli"]
    subprocess.run([*brt_, "train", str(config)], cwd=ROOT, check=True, capture_output=True)
    subprocess.run([*brt_, "report", str(folder / "run")], cwd=ROOT, check=True, capture_output=True)
    return folder / "run" / "report.html"


def test_every_chart_of_a_real_run_has_its_size_and_place(trained: Path, tmp_path: Path) -> None:
    found = boxes(trained, tmp_path)
    (page,), figures, pictures = found["page"], found["figure"], found["svg"]
    assert len(figures) == len(pictures) >= 10  # loss, gain, norm, rate, speed, waiting, those of memory, positions
    assert len({round(figure["height"]) for figure in figures}) == 1
    for figure, picture in zip(figures, pictures, strict=True):
        assert picture["width"] > 500 and 190 < picture["height"] < 300
        assert page["x"] <= figure["x"] and figure["x"] + figure["width"] <= page["x"] + page["width"]
        assert figure["x"] <= picture["x"] and picture["x"] + picture["width"] <= figure["x"] + figure["width"]
        assert figure["y"] < picture["y"] and picture["y"] + picture["height"] <= figure["y"] + figure["height"]
    assert not any(overlap(one, other) for n, one in enumerate(figures) for other in figures[:n])
    inside = [
        next((p for p in pictures if overlap(p, curve) or p["y"] <= curve["y"] <= p["y"] + p["height"]), None)
        for curve in found["curve"]
    ]
    assert len(found["curve"]) >= 12 and all(inside)
    assert sum(curve["width"] > 300 for curve in found["curve"]) >= 12  # they span the page
    marks = [box for box in found["text"] if box["width"]]
    for mark in marks:
        assert any(p["x"] <= mark["x"] and mark["x"] + mark["width"] <= p["x"] + p["width"] for p in pictures)
    assert not [1 for n, one in enumerate(marks) for other in marks[:n] if overlap(one, other)]


@pytest.mark.parametrize("width", [500, 900, 1900])
def test_nothing_is_clipped_at_any_width(trained: Path, tmp_path: Path, width: int) -> None:
    found = boxes(trained, tmp_path, width)
    assert found["scroll"][0]["width"] <= found["window"][0]["width"]  # the page is not wider than the window
    for mark in (box for box in found["text"] if box["width"]):
        assert any(p["x"] <= mark["x"] and mark["x"] + mark["width"] <= p["x"] + p["width"] for p in found["svg"])
    for value in found["inside"]:
        assert any(t["x"] <= value["x"] and value["x"] + value["width"] <= t["x"] + t["width"] for t in found["tile"])


def test_values_are_shown_under_the_pointer(trained: Path, tmp_path: Path) -> None:
    script = """
      const svg = document.querySelector("figure > svg[data-last]"), box = svg.getBoundingClientRect();
      const at = {clientX: box.right - box.width / 40, clientY: box.top + 60};
      svg.dispatchEvent(new PointerEvent("pointermove", at));
      const tip = document.getElementById("tip");
      const shown = [tip.textContent, tip.style.display];
      svg.dispatchEvent(new PointerEvent("pointerleave"));
      answer({shown, after: tip.style.display});
    """
    found = asked(trained, tmp_path, script)
    text, display = found["shown"]
    assert display == "block" and found["after"] == "none"
    assert text.startswith("step 20") and "held-out text, memory carried: " in text


def test_the_x_axis_can_be_tokens_or_time(trained: Path, tmp_path: Path) -> None:
    script = """
      const svg = document.querySelector("figure > svg[data-last]");
      const read = () => ({below: svg.querySelector(".below").textContent,
        marks: [...svg.querySelectorAll(".columns text")].map(t => t.textContent),
        line: svg.querySelector("polyline").getAttribute("points")});
      const found = {step: read()};
      for (const axis of ["tokens", "hours", "step"]) {
        document.querySelector(`input[value=${axis}]`).click(); found[axis + "_now"] = read();
      }
      answer(found);
    """
    found = asked(trained, tmp_path, script)
    step, tokens, hours, back = (found[key] for key in ("step", "tokens_now", "hours_now", "step_now"))
    assert (step["below"], tokens["below"], back["below"]) == ("step", "tokens", "step")
    assert "of training" in hours["below"] and hours["line"] != step["line"]
    assert all(one["marks"][0] in ("0", "0.0") for one in (step, tokens, hours, back))
    events = [json.loads(line) for line in (trained.parent / "metrics.jsonl").read_text().splitlines()]
    last = max(event["tokens"] for event in events if event["event"] == "step")
    assert float(tokens["marks"][-1].replace("k", "e3")) <= last < 2 * float(tokens["marks"][-1].replace("k", "e3"))
    ends = [one["line"].split()[-1] for one in (step, tokens, back)]
    assert len(set(ends)) == 1  # the last step is at the right end of each axis


def test_a_real_run_says_nothing_on_the_console(trained: Path, tmp_path: Path) -> None:
    picture, console = screenshot(trained, tmp_path)
    assert console == ""
    for colour in ("#1f5fa8", "#c2571a", "#8e44ad", "#2e7d4f"):
        assert pixels(picture, colour) > 30, colour


def test_it_is_drawn(page: Path, tmp_path: Path) -> None:
    """Curves in their colours, the line of the second attempt, and an empty console."""
    picture, console = screenshot(page, tmp_path)
    assert console == ""
    assert picture.shape == (1400, 1300, 3)
    assert pixels(picture, "#f6f7f9") > 100_000  # the page around the cards
    for colour, least in (("#1f5fa8", 100), ("#2e7d4f", 100), ("#c2571a", 30)):  # the last is only dots
        assert pixels(picture, colour) > least, colour
    red, green, blue = picture[..., 0], picture[..., 1], picture[..., 2]
    assert ((red - green > 50) & (abs(green - blue) < 25)).sum() > 100  # dashes, blended with the white behind them


def test_it_is_dark_for_those_who_want_it_dark(page: Path, tmp_path: Path) -> None:
    picture, console = screenshot(page, tmp_path, "--blink-settings=preferredColorScheme=0")
    assert console == "" and pixels(picture, "#12161c") > 100_000
    assert pixels(picture, "#6fa8e8") > 100


def test_it_loads_nothing(page: Path, tmp_path: Path) -> None:
    """Any request would go to a port on which nothing listens, and so show on the console."""
    _, console = screenshot(page, tmp_path, "--proxy-server=127.0.0.1:9")
    assert console == ""
