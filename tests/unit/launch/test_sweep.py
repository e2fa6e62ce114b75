"""The grid of a sweep, and what its record says of runs."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brt_dist.errors import ConfigError
from launch.sweep.grid import Axis, axes, points
from launch.sweep.record import Sweep, best, result_table
from launch.sweep.space import listed_points, random_points
from pipelines.tables import text_of


def test_all_combinations_with_names_that_folders_can_have() -> None:
    grid = axes(["optimizer.learning_rate=0.001, 3e-4", "model.recurrent_layers=[-1],[-3, -1]"])
    found = points(grid)
    assert [point.overrides for point in found] == [
        ["optimizer.learning_rate=0.001", "model.recurrent_layers=[-1]"],
        ["optimizer.learning_rate=0.001", "model.recurrent_layers=[-3, -1]"],
        ["optimizer.learning_rate=3e-4", "model.recurrent_layers=[-1]"],
        ["optimizer.learning_rate=3e-4", "model.recurrent_layers=[-3, -1]"],
    ]
    assert all(not set("/[] '\"$") & set(point.name) for point in found)
    assert len({point.name for point in found}) == 4
    assert points(axes(["model.width=64,128"]))[0].name == "width=64"


def test_keys_that_end_alike_are_told_apart() -> None:
    (point, *_) = points(axes(["model.layers=2,4", "model.recurrent_layers=[-1]", "optimizer.name=adamw"]))
    assert point.settings == {"model.layers": "2", "model.recurrent_layers": "[-1]", "optimizer.name": "adamw"}
    named = points([Axis("a.x", ("1",)), Axis("b.x", ("2",))])
    assert named[0].name == "a.x=1,b.x=2"


@given(
    st.dictionaries(
        st.sampled_from(["model.width", "model.gate", "data.dataset", "optimizer.betas"]),
        st.lists(
            st.text(st.characters(exclude_characters=",'\"[]{}", exclude_categories=["Cs"]), min_size=1), min_size=1
        ),
        min_size=1,
    )
)
def test_names_are_as_many_as_combinations(grid: dict[str, list[str]]) -> None:
    found = points([Axis(key, tuple(dict.fromkeys(values))) for key, values in grid.items()])
    assert len({point.name for point in found}) == len({tuple(point.settings.items()) for point in found}) == len(found)
    assert all(0 < len(point.name) < 255 and "/" not in point.name for point in found)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["model.width"], "'model.width' is not of the form KEY="),
        (["=64"], "'=64' is not of the form KEY="),
        (["model.width=64,,128"], "model.width=64,,128 has an empty value"),
        (["model.width="], "model.width= has an empty value"),
        (["model.width=64..512"], r"holds a range; .*: --random model.width=64..512"),
        (["model.widht=64"], "nearest: model.width"),
        (["run.directory=a,b"], "run.directory cannot vary within a sweep"),
        (["model.width=64", "model.width=128"], "given twice"),
        (["model.width=64,64"], "has the same value twice"),
    ],
)
def test_a_wrong_grid_is_refused(given: list[str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        axes(given)


def test_the_record_grows_and_knows_the_best(tmp_path: Path) -> None:
    sweep = Sweep.open(tmp_path, 'it\'s "a" sweep')
    assert "'" not in sweep.identity and sweep.identity.startswith("it_s _a_ sweep-")
    sweep.add(points(axes(["model.width=64,128"])))
    again = Sweep.open(tmp_path, "another name")
    again.add(points(axes(["model.width=128,256"])))
    assert again.identity == sweep.identity and list(again.runs) == ["width=64", "width=128", "width=256"]
    for name, bits, verdict in (
        ("width=64", 3.0, "finished"),
        ("width=128", 2.5, "finished"),
        ("width=256", 1.0, "hung"),
    ):
        folder = tmp_path / name / "attempts" / "001"
        folder.mkdir(parents=True)
        (folder / "attempt.json").write_text(json.dumps({"end": 2.0, "verdict": verdict, "exit_code": 0}))
        events = [
            {"event": "step", "step": 5, "loss": 2.0},
            {"event": "evaluation", "step": 5, "dataset": "train", "memory": "carried", "bits_per_token": 0.1},
            {"event": "evaluation", "step": 5, "dataset": "validation", "memory": "carried", "bits_per_token": bits},
            {"event": "evaluation", "step": 5, "dataset": "validation", "memory": "cleared", "bits_per_token": 0.2},
        ]
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    results = Sweep.read(tmp_path).results()
    top = best(results)
    assert top is not None and top.run.name == "width=128" and top.bits_per_token == 2.5
    lines = text_of(result_table(results)).splitlines()
    assert [line.split()[0] for line in lines] == ["model.width", "64", "128", "256"]
    assert [line.endswith("best") for line in lines] == [False, False, True, False]
    (tmp_path / "sweep.json").write_text("{")
    with pytest.raises(ConfigError, match="remove it to start the sweep from scratch"):
        Sweep.read(tmp_path)


RANGES = ["optimizer.learning_rate=0.0001..0.01", "model.dropout=0..0.2", "model.width=64..512", "data.streams=8,16"]


def test_random_runs_are_in_their_ranges_and_more_begin_with_the_same() -> None:
    found = random_points(RANGES, 200, seed=3)
    assert len({point.name for point in found}) == 200
    rates = sorted(float(point.settings["optimizer.learning_rate"]) for point in found)
    assert rates[0] >= 0.0001 and rates[-1] <= 0.01
    assert 60 <= sum(rate < 0.001 for rate in rates) <= 140, (
        "by logarithm: half of them below the middle of the decades"
    )
    drops = [float(point.settings["model.dropout"]) for point in found]
    assert 60 <= sum(drop < 0.1 for drop in drops) <= 140 and max(drops) <= 0.2
    widths = {point.settings["model.width"] for point in found}
    assert all(width.isdigit() and 64 <= int(width) <= 512 for width in widths)
    assert {point.settings["data.streams"] for point in found} == {"8", "16"}
    assert random_points(RANGES, 20, seed=3) == found[:20] and random_points(RANGES, 20, seed=4) != found[:20]


@pytest.mark.parametrize(
    ("given", "count", "told"),
    [
        (["optimizer.learning_rate=0.01..0.001"], 3, "the first end must be below the second"),
        (["optimizer.learning_rate=a..b"], 3, "is not a range of two numbers; example: --random optimizer.learning_"),
        (["optimizer.learning_rate=0.1.."], 3, "is not a range of two numbers"),
        (["optimizer.learning_rate=..0.1"], 3, "is not a range of two numbers"),
        (["optimizer.learning_rate=0.1..0.2..0.3"], 3, "is not a range of two numbers"),
        (["optimizer.learning_rate=0.1..inf"], 3, "is not a range of two numbers"),
        (["optimizer.learning_rate=0.1..1e999"], 3, "an end is too large"),
        (["optimizer.learning_rate=0.1..0.2,0.3"], 3, "holds a range; a range goes to --random, by itself"),
        (["optimizer.learning_rate=0.2..0.1"], 3, "nearest: optimizer.learning_rate=0.1..0.2"),
        (["model.width=64..64"], 3, "nearest: model.width=64 for all runs"),
        (["model.width=1"], 3, "model.width=1 is one value, neither a range (LOW..HIGH) nor a list (A,B,...)"),
        (["model.width="], 3, "model.width= has an empty value"),
        (["model.width"], 3, "'model.width' is not of the form KEY="),
        (["model.width=1..2"], 3, "--count 3: --random has only 2 combinations; nearest: --count 2"),
        (["optimizer.learning_rat=0.1..0.2"], 3, "nearest: optimizer.learning_rate"),
        (["data.streams=8,16"], 3, "nearest: --count 2"),
    ],
)
def test_ranges_that_cannot_be_drawn_from_are_refused(given: list[str], count: int, told: str) -> None:
    with pytest.raises(ConfigError) as error:
        random_points(given, count, 0)
    assert told in str(error.value)


KEYS = ["model.width", "optimizer.learning_rate", "data.dataset"]


@given(
    st.lists(
        st.tuples(
            st.sampled_from([*KEYS, "model.widht", "run.directory", ""]),
            st.sampled_from(["=", "", " = "]),
            st.lists(
                st.sampled_from(["1", "0.5", "2e3", "..", ".", ",", "-", "a", "/", "[", "]", "'", " ", "inf"])
            ).map("".join),
        ).map("".join),
        min_size=1,
        max_size=3,
    )
)
def test_options_are_read_as_written_or_refused(options: list[str]) -> None:
    """One message with the option's name and a line for each that is wrong; what is accepted is as it was written."""
    for option, read in (("--grid", lambda: points(axes(options))), ("--random", lambda: random_points(options, 2, 0))):
        try:
            found = read()
        except ConfigError as error:
            lines = str(error).splitlines()
            assert lines[0].startswith((f"{option}:", "--count 2: --random has only"))
            assert len(lines) <= 1 + len(options) and all(lines)
            continue
        keys = [text.partition("=")[0].strip() for text in options]
        assert len(set(keys)) == len(keys) and set(keys) <= set(KEYS)
        for point in found:
            assert list(point.settings) == keys
            for text in options:
                key, _, written = text.partition("=")
                value, (low, dots, high) = point.settings[key.strip()], written.partition("..")
                if option == "--random" and dots and value not in written:
                    assert float(low) <= float(value) <= float(high)
                else:
                    assert value and value in written


def test_runs_are_listed_in_a_file_with_settings_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "runs.txt"
    path.write_text("# two runs\noptimizer.learning_rate=0.001 model.width=64\n\n  model.width='128'  # wide\n")
    found = listed_points(path)
    assert [point.settings for point in found] == [
        {"optimizer.learning_rate": "0.001", "model.width": "64"},
        {"model.width": "128"},
    ]
    assert [point.name for point in found] == ["learning_rate=0.001,width=64", "width=128"]


def test_all_that_is_wrong_with_a_list_is_told_with_its_lines(tmp_path: Path) -> None:
    path = tmp_path / "runs.txt"
    lines = ["model.widht=64", "model.width", "run.directory=x", "model.width='", "model.width=1", "model.width=1"]
    lines += ["=1", "model.width=", "model.width=1 model.width=2", "", "model.width=1"]
    path.write_text("\n".join(lines))
    with pytest.raises(ConfigError) as error:
        listed_points(path)
    for told in (
        "line 1: unknown key model.widht; nearest: model.width",
        "line 2: 'model.width' is not of the form key=value",
        "line 3: run.directory cannot vary",
        "line 4: No closing quotation",
        "line 6: the same run as line 5",
        "line 7: '=1' is not of the form key=value",
        "line 8: 'model.width=' is not of the form key=value",
        "line 9: model.width is given twice",
        "line 11: the same run as line 5",
    ):
        assert told in str(error.value)
    path.write_text("# nothing\n")
    with pytest.raises(ConfigError, match="no run"):
        listed_points(path)
    with pytest.raises(ConfigError, match="No such file"):
        listed_points(tmp_path / "none")
