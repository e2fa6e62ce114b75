"""`brt plan`: what it prints, its JSON, its refusals."""

import json
from pathlib import Path

import pytest

from launch.cli import main

ROOT = Path(__file__).parents[3]
RECIPE = [str(ROOT / "examples" / "scale_70b.yaml"), "model.vocab_size=131072"]


def plan(*arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        main(["plan", *arguments])
    out, err = capsys.readouterr()
    assert isinstance(end.value.code, int)
    return end.value.code, out, err


def test_a_plan_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = plan(*RECIPE, capsys=capsys)
    assert code == 0
    for said in (
        "70.6 billion parameters",
        "512 x NVIDIA H100",
        "shares of the peak measured on one model",
        "peak by stage",
        "bubble",
        "MFU",
        "$",
    ):
        assert said in out


def test_a_plan_for_programs_and_its_timeline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "pipeline.html"
    code, out, _ = plan(*RECIPE, "--gpus", "64", "--device", "h200", "--timeline", str(page), "--json", capsys=capsys)
    found = json.loads(out)
    assert code == 0 and found["fits"] and found["devices"] == 64 and found["layout"]["data"] == 1
    parts = {name: seconds for name, seconds in found["step_seconds"].items() if name != "total"}
    assert sum(parts.values()) == pytest.approx(found["step_seconds"]["total"])
    assert len(found["memory"]) == 8 and found["memory"][0]["device"] == sum(
        size
        for name, size in found["memory"][0].items()
        if name not in ("device", "host") and not name.startswith("host_")
    )
    text = page.read_text()
    assert "32 of 1024 micro-batches" in text and text.count("ForwardPass") >= 8 * 32 and "src=" not in text


def test_a_search(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = plan(*RECIPE, "--gpus", "64", "--search", "--most", "3", "--json", capsys=capsys)
    found = json.loads(out)
    assert code == 0 and found["search"]["fit"] > 3 and len(found["search"]["plans"]) == 3
    assert found["layout"] == found["search"]["plans"][0]["layout"]
    assert " slower: " in found["search"]["plans"][1]["why"]


def test_what_does_not_fit(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = plan(*RECIPE, "parallel.pipeline=1", "parallel.data=1", capsys=capsys)
    assert code == 13 and "does not fit" in out and "needs" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--gpus", "100"], "--gpus 64"),
        (["--device", "h1000"], "unknown device"),
        (["--nodes", "7"], "512 devices cannot be spread evenly over 7 nodes"),
        (["--gpus", "192"], "data.streams=1024 must be a multiple"),
    ],
)
def test_a_mistake_is_one_message(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = plan(*RECIPE, *arguments, capsys=capsys)
    assert code != 0 and said in err


def test_the_vocabulary_must_be_known(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = plan(RECIPE[0], capsys=capsys)
    assert code == 10 and "model.vocab_size" in err
