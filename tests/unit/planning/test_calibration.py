"""Files of `brt plan --calibrate`: which numbers of ranks they answer for, and how runs correct them."""

import json
from pathlib import Path
from typing import Any

import pytest

from brt_dist.config.loading import dump, load
from brt_dist.errors import ConfigError
from brt_dist.events import AttemptEvent, LayoutSizes, StepEvent, to_json
from brt_dist.planning.calibration import machine
from brt_dist.planning.calibration.machine import calibrate, write_calibration
from brt_dist.planning.devices import Calibration, DeviceSpec, device_spec, read_device, this_machine
from brt_dist.planning.layout_plan import Planner
from launch.cli import main
from launch.doctor.fitting import laid_out
from launch.report.collect import RunFacts
from launch.views.calibration import calibration_text, corrected
from tests.unit.planning.recipes import EXAMPLES, recipe


def measured(ranks: int) -> DeviceSpec:
    return this_machine(ranks).model_copy(update={"is_timed": True, "narrow_products": {64: 0.25, 256: 1.0}})


def calibration() -> Calibration:
    return Calibration(format=1, measured="by hand", ranks={1: measured(1), 4: measured(4)})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_calibration(tmp_path / "here.yaml", calibration())
    return tmp_path / "here.yaml"


def test_a_file_is_read_as_it_was_written(file: Path) -> None:
    assert read_device(file) == calibration()
    assert device_spec(str(file), 4) == measured(4)


def test_the_next_fewer_ranks_answer_for_those_that_were_not_measured() -> None:
    found = calibration()
    three, alone = found.of(3), measured(1)
    for name in ("memory", "memory_rate", "host_rate", "link_rate", "network_rate"):
        assert getattr(three, name) == pytest.approx(getattr(alone, name) / 3)
    assert three.peak_flops.fp32 == pytest.approx(alone.peak_flops.fp32 / 3)
    assert three.launch_seconds == alone.launch_seconds and three.devices_per_node == 3
    assert found.of(8).peak_flops.fp32 == measured(4).peak_flops.fp32 / 2
    few = found.model_copy(update={"ranks": {4: measured(4)}})
    assert few.of(1) == measured(4)


def test_products_between_two_sides_reach_a_share_between_theirs() -> None:
    device = measured(1)
    shares = [device.share_of_products(side) for side in (8, 64, 128, 256, 4096)]
    assert shares == [0.25, 0.25, pytest.approx(0.625), 1.0, 1.0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format": 2}, "format 2, and this version reads 1; nearest: brt plan --calibrate"),
        ({"ranks": {}}, "ranks: Dictionary should have at least 1 item"),
        ({"ranks": {0: None}}, "ranks.0"),
        ({"colour": "green"}, "colour"),
    ],
)
def test_a_wrong_file_is_told(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(json.dumps({**calibration().model_dump(mode="json"), **change}))
    with pytest.raises(ConfigError, match=said):
        device_spec(str(path))


def a_run(folder: Path, seconds: float, device: Path, steps: int = 5) -> Path:
    """Of one rank on this CPU; its first step is slow."""
    folder.mkdir()
    settings = ("data.streams=8", "parallel.tensor=1", "parallel.data=1", f"launch.gpu_kind={device}")
    (folder / "config.yaml").write_text(dump(recipe("scale_150m", f"run.directory={folder}", *settings)))
    begun = AttemptEvent(attempt=1, world_size=1, device="cpu", layout=LayoutSizes(1, 1, 1, 1, 8))
    told = [StepEvent(attempt=1, step=n, step_seconds=9 * seconds if n == 1 else seconds) for n in range(1, steps + 1)]
    lines = [json.dumps(to_json(event)) + "\n" for event in (begun, *told)]
    (folder / "metrics.jsonl").write_text("".join(lines))
    return folder


def planned(path: Path) -> float:
    config = recipe("scale_150m", "data.streams=8", "parallel.tensor=1", "parallel.data=1")
    return Planner(config, device_spec(str(path), 1)).plan(config.parallel).time.total


def test_after_a_correction_a_run_is_planned_as_long_as_it_took(file: Path, tmp_path: Path) -> None:
    took = 1.7 * planned(file)
    runs = [a_run(tmp_path / f"run{number}", share * took, file) for number, share in enumerate((0.9, 1.0, 1.2))]
    found, words = corrected(file, runs)
    write_calibration(file, found)
    assert planned(file) == pytest.approx(took)
    assert "run1" in words and "+70%" in words
    again, _ = corrected(file, runs)
    assert again.of(1).correction == pytest.approx(found.of(1).correction)


def test_a_run_that_tells_nothing_is_refused(file: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no times to use"):
        corrected(file, [a_run(tmp_path / "run", 1.0, file, steps=2)])
    with pytest.raises(ConfigError, match="is not a calibration file; nearest: brt plan --calibrate --out"):
        corrected(tmp_path / "none.yaml", [])


def test_the_report_plans_times_of_a_cpu_that_was_measured(file: Path, tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", 3.0, file)
    found = {one.name: one for one in RunFacts.of(run).planned}
    assert found["step"].planned == pytest.approx(planned(file)) and found["step"].measured == 3.0
    assert found["step: compute"].planned and found["step: the update"].planned
    file.unlink()  # the file is gone: as for any other CPU
    assert {one.name: one.planned for one in RunFacts.of(run).planned}["step"] is None


def test_auto_plans_for_a_calibration(file: Path) -> None:
    given = ["data.dataset=unused", "model.vocab_size=512", "parallel=auto", "launch.gpus_per_node=4"]
    chosen = laid_out(load("run: {directory: runs/a, steps: 2000}", [*given, f"launch.gpu_kind={file}"]))
    assert chosen.config.parallel.world_size == 4
    assert chosen.provenance["parallel.auto"].startswith("parallel: auto, planned for 4 x cpu")


def brt(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert isinstance(end.value.code, int)
    return end.value.code


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("my.yaml",), "--calibrate takes no config: my.yaml"),
        (("--device", "h100"), "measures this machine: --device cpu or cuda"),
        (
            ("--from", "tests", "--out", "none.yaml"),
            "none.yaml is not a calibration file; nearest: brt plan --calibrate",
        ),
    ],
)
def test_mistakes_on_the_command_line(
    arguments: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert brt("plan", "--calibrate", *arguments) == 10
    assert said in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.long
def test_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Measured in seconds, so rates mean little; what matters is that all are there and a plan takes them."""
    told: list[str] = []
    monkeypatch.setattr(machine, "_counts", lambda _: [2])  # two ranks measure all that one does, and more
    found = calibrate("cpu", tmp_path, told.append, seconds=1.0)
    assert list(found.ranks) == [2] and {spec.name for spec in found.ranks.values()} == {"cpu"}
    assert any("matrix products" in now for now in told) and any("disk" in now for now in told)
    for ranks, spec in found.ranks.items():
        assert not spec.is_asynchronous and spec.disk_rate and spec.devices_per_node == ranks
        assert 0 < spec.attention_efficiency <= 1 and max(spec.narrow_products.values()) <= 1
        assert spec.memory == this_machine(ranks).memory
    assert "matrix products, fp32" in calibration_text(found)
    write_calibration(tmp_path / "here.yaml", found)
    config = [str(EXAMPLES / "scale_150m.yaml"), "model.vocab_size=32000", "data.streams=8", "run.precision=fp32"]
    capsys.readouterr()
    assert brt("plan", *config, "--gpus", "1", "--device", str(tmp_path / "here.yaml"), "--json") in (0, 13)
    plan = json.loads(capsys.readouterr().out)
    assert plan["device"]["peak_flops"]["fp32"] == found.of(2).peak_flops.fp32 and plan["step_seconds"]["total"] > 0
    assert not list(tmp_path.glob("tmp*"))
