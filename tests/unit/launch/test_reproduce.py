"""The kit of `brt reproduce`: its configs, counts, recipes, table and refusals.  `make reproduce-tiny` trains."""

import gzip
import json
import shlex
import subprocess
import tarfile
from pathlib import Path
from statistics import stdev
from typing import Any

import pytest
import yaml

from brt_dist.config.rules import check
from brt_dist.planning.devices import device_spec
from brt_dist.planning.layout_plan import Planner
from launch.cli import main
from launch.reproduce import kit
from launch.reproduce.cost import cost_of
from launch.reproduce.equal import with_equal_parameters
from launch.reproduce.plot import plot
from launch.reproduce.results import Results, markdown, results
from launch.reproduce.training import Trained, measured_once
from pipelines.sources import Document, open_sources, read_units
from tests.unit.test_docs import resolve

SURENESS = {"agreed", "one note", "disputed", "unverified"}
ABLATIONS = {"count", "position", "states", "window"}


def reproduce(*arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        main(["reproduce", *arguments])
    out, err = capsys.readouterr()
    assert isinstance(end.value.code, int)
    return end.value.code, out, err


def test_all_tables_are_there() -> None:
    assert set(kit.tables()) == {"table1", *ABLATIONS}
    assert set(kit.scales()) == {"tiny", "small", "paper"}
    assert {table for table in kit.tables() if kit.claim(table)} == ABLATIONS


@pytest.mark.parametrize("scale", kit.scales())
@pytest.mark.parametrize("table", kit.tables())
def test_rows_pass_the_rules_and_read_the_same_tokens(table: str, scale: str) -> None:
    rows = kit.rows(table, scale)
    configs = [row.config(["model.vocab_size=512"]) for row in rows]
    for config in configs:
        check(config)
        assert (
            kit.base(scale).data.segment % config.model.window == 0
        )  # memory can be cleared at the same places in all rows
    assert len({config.data.segment * config.data.streams for config in configs}) == 1
    assert len({config.parallel.micro_batch * config.data.segment for config in configs}) == 1
    assert len({str((config.model, config.data)) for config in configs}) == len({row.name for row in rows}) == len(rows)


def test_table_1_has_the_rows_of_the_paper_with_its_parameters() -> None:
    rows, known = kit.rows("table1", "paper"), kit.known_parameters()
    assert [row.name for row in rows] == list(known) and len(rows) == 13
    for row in rows:
        config = row.config(["model.vocab_size=32000"])
        body = Planner(config, device_spec("h100")).parameters - 32000 * config.model.width
        assert round(body / 1e6, 2) == known[row.name], row.name


def test_a_scale_keeps_what_makes_a_row() -> None:
    rows = {row.name: row.config() for row in kit.rows("table1", "tiny")}
    fixed = rows["Rec:fixed:skip"]
    assert rows["Slide:13L"].model.layers == fixed.model.layers + 1
    assert rows["XL:2048"].model.window == rows["XL:2048"].data.segment == 4 * fixed.model.window
    layers = {row.name: row.config().model.feeding_layers() for row in kit.rows("count", "small")}
    assert layers == {"none": (), "one": (4,), "two, adjacent": (3, 4), "two, apart": (1, 4)}


def test_equal_parameters() -> None:
    rows = with_equal_parameters(kit.rows("table1", "small"), "small")
    counts = {row.name: cost_of(row, 1024, "h100").parameters for row in rows}
    wanted = counts["Rec:fixed:skip"]
    assert wanted == Planner(kit.base("small", ["model.vocab_size=1024"]), device_spec("h100")).parameters
    assert all(abs(count / wanted - 1) < 1e-3 for count in counts.values()), counts
    for row in rows:
        check(row.config(["model.vocab_size=1024"]))


def test_how_sure_each_figure_is() -> None:
    record = yaml.safe_load((kit.KIT / "expected.yaml").read_text())
    columns = {"step_time", *(kit.recipe(name).column for name in kit.recipes())}
    for row in record["rows"].values():
        for column in row.keys() - {"parameters"}:
            sources = row[column].get("source", [])
            assert column in columns and row[column]["sureness"] in SURENESS
            assert set(sources) <= record["sources"].keys()
            assert (len(sources) >= 2) == (row[column]["sureness"] in ("agreed", "disputed"))
            assert bool(sources) == (row[column]["sureness"] != "unverified")
    assert kit.expected("github")["Slide:13L"] == kit.Figure(1.17, "agreed")
    assert "Feed:fixed:skip" not in kit.expected("github")


@pytest.mark.parametrize("name", kit.recipes())
def test_recipes_are_commands_that_exist(name: str) -> None:
    recipe = kit.recipe(name)
    for commands in (recipe.public, recipe.local):
        calls = [shlex.split(line)[1:] for line in commands.splitlines() if line.startswith("brt ")]
        assert calls
        for words in calls:
            command, arguments = resolve(words)
            command.make_context(command.name, list(arguments))
    assert (kit.KIT / "data" / "unpack_arxiv.sh").stat().st_mode & 0o111


def test_papers_are_unpacked_as_arxiv_packs_them(tmp_path: Path) -> None:
    month, source = tmp_path / "arxiv" / "2106", tmp_path / "source"
    month.mkdir(parents=True)
    source.mkdir()
    (source / "main.tex").write_text("\\documentclass{article}\n\\input{proof}\n")
    (source / "proof.tex").write_text("a proof\n")
    with tarfile.open(month / "2106.00001.gz", "w:gz") as packed:
        for path in source.iterdir():
            packed.add(path, path.name)
    (month / "2106.00002.gz").write_bytes(gzip.compress(b"\\documentclass{article}\none file\n"))
    (month / "2106.00003.pdf").write_bytes(b"%PDF")
    subprocess.run([kit.KIT / "data" / "unpack_arxiv.sh", tmp_path / "arxiv"], check=True)
    units = [unit for given in open_sources([f"latex:{tmp_path / 'arxiv'}"]) for unit in given.units(1 << 30)]
    texts = [read.text for read in read_units(units, "text") if isinstance(read, Document)]
    assert texts == ["\\documentclass{article}\na proof\n", "\\documentclass{article}\none file\n"]


def test_what_was_measured_is_measured_again_only_where_something_changed(tmp_path: Path) -> None:
    calls = list[Path]()

    def measure(run: Path) -> dict[str, Any]:
        calls.append(run)
        return {"tokens": len(calls)}

    run = tmp_path / "seed=0"
    for facts, expected in (
        ({"step": 5, "held_out": "all"}, 1),
        ({"step": 5, "held_out": "all"}, 1),
        ({"step": 6, "held_out": "all"}, 2),
        ({"step": 6, "held_out": "2 documents"}, 3),
    ):
        assert measured_once(run, facts, measure) == {**facts, "tokens": expected}


def measured(carried: float, cleared: float) -> dict[str, Any]:
    return {
        "documents": 4,
        "tokens": 1000,
        "carried": {"bits_per_token": carried, "standard_error": 0.25},
        "cleared": {"bits_per_token": cleared, "standard_error": 0.25},
    }


@pytest.fixture
def found() -> Results:
    """Two seeds of two rows, and a row that failed."""
    costs = {row.name: cost_of(row, 1024, "cpu") for row in kit.rows("table1", "tiny", ["Slide:13L", "Rec:fixed:s*"])}
    bits = {"Slide:13L": (5.0, 5.5), "Rec:fixed:skip": (4.0, 4.75)}
    trained = [
        Trained(name, seed, Path("run"), "finished", 150, measured(value, value + 1))
        for name, values in bits.items()
        for seed, value in enumerate(values)
    ]
    trained.append(Trained("Rec:fixed:single", 0, Path("run"), "failed", 3, None))
    return results("a table", trained, costs, kit.expected("arxiv"), kit.expected("step_time"))


def test_the_table(found: Results) -> None:
    rows = {row.name: row for row in found.rows}
    row = rows["Rec:fixed:skip"]
    assert (row.seeds, row.carried, row.cleared, row.document_error) == (2, 4.375, 5.375, 0.25)
    assert row.spread == pytest.approx(stdev((4.0, 4.75)))
    assert row.difference == -0.875 and row.difference_spread == pytest.approx(stdev((-1.0, -0.75)))  # seed by seed
    assert row.paper == 1.24 and row.paper_difference == pytest.approx(1.24 - 1.42) and row.sureness == "disputed"
    assert rows["Slide:13L"].step_ratio == 1.0 and row.paper_step_ratio == 0.99
    assert rows["Rec:fixed:single"].carried is None and rows["Rec:fixed:single"].seeds == 0
    assert (found.reference, found.tokens, found.held_out) == ("Slide:13L", 150 * 1024, (4, 1000))
    assert json.loads(json.dumps(found.to_json()))["rows"][0]["name"] == "Slide:13L"


def test_the_table_for_people_and_its_plot(found: Results, tmp_path: Path) -> None:
    lines = [line for line in markdown(found, "a claim").splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1 and len(lines) == 5
    assert "| 4.3750 |" in lines[-1] and "| -0.8750 |" in lines[-1] and "| disputed |" in lines[-1]
    plot(tmp_path / "table.png", found)
    assert (tmp_path / "table.png").read_bytes().startswith(b"\x89PNG")


def test_the_papers_scale_states_its_price_and_does_not_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    rows = ["table1", "--scale", "paper", "--only", "Slide:13L", "--seeds", "2", "--out", str(out)]
    code, told, _ = reproduce(*rows, "--dry-run", "--json", capsys=capsys)
    plan = json.loads(told)
    one = plan["plan"]["Slide:13L"]
    assert code == 0 and one["problem"] is None and one["tokens"] == 500_000 * 131_072
    assert plan["device_hours"] == pytest.approx(2 * 500_000 * one["step_seconds"] * 8 / 3600)
    code, _, err = reproduce(*rows, capsys=capsys)
    assert code == 10 and f"{plan['device_hours']:,.0f} H100 hours, $" in err and "--yes" in err
    assert not out.exists()


def test_the_docs_state_the_planned_price(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out")
    _, told, _ = reproduce("table1", "--scale", "paper", "--out", out, "--dry-run", "--json", capsys=capsys)
    plan = json.loads(told)
    cost = sum(row["cost"] for row in plan["plan"].values())
    assert (
        f"{plan['device_hours']:,.0f} H100 hours, ${cost:,.0f}"
        in (Path(__file__).parents[3] / "docs/results.md").read_text()
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["tabel1"], "nearest: table1"),
        (["table1", "--scale", "tin"], "nearest: tiny"),
        (["table1", "--data", "book"], "nearest: books"),
        (["table1", "--only", "Slide:13"], "nearest: Slide:13L"),
        (["table1", "--only", "Slide:13L", "model.widht=3"], "nearest: model.width"),
        (["table1", "--only", "Slide:13L", "--data", "papers"], "latex:FOLDER"),
        (["table1", "--only", "Slide:13L", "--dataset", "nowhere"], "no dataset in nowhere/train"),
    ],
)
def test_mistakes(arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = reproduce(*arguments, "--out", str(tmp_path / "out"), capsys=capsys)
    assert code == 10 and said in err and not (tmp_path / "out").exists()
