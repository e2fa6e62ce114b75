"""How `brt plan --calibrate` measures: it fits the plan to steps as they are trained, and notices other work."""

import json
from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from brt_dist import kinds
from brt_dist.parallel.device import Device
from brt_dist.parallel.engine import Engine
from brt_dist.parallel.layout import single_process
from brt_dist.planning.calibration import computing, fitting, machine, rank, steps
from brt_dist.planning.calibration.clock import Clock, Probe
from brt_dist.planning.calibration.fitting import (
    MIXERS,
    SHAPES,
    MeasuredStep,
    StepShape,
    fitted,
    of_mixers,
    of_tensor,
    step_config,
)
from brt_dist.planning.devices import Calibration, DeviceSpec, device_spec, read_device, this_machine
from brt_dist.planning.layout_plan import Planner
from launch.cli import main
from launch.views.calibration import calibration_text


def planned(device: DeviceSpec, kind: str, ranks: int) -> list[MeasuredStep]:
    """Steps that take just as long as planned."""
    found = []
    for shape in SHAPES[kind]:
        config = step_config(kind, ranks, shape)
        time = Planner(config, device).plan(config.parallel).time
        compute = time.compute + time.launches * (not device.is_asynchronous)
        found.append(MeasuredStep(shape, compute, time.update))
    return found


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
@pytest.mark.parametrize("ranks", [1, 2])
def test_passes_are_those_that_the_steps_had(kind: str, ranks: int) -> None:
    base = this_machine(ranks) if kind == "cpu" else device_spec("h100").model_copy(update={"launch_seconds": 1e-7})
    passes = {"activation_passes": 17.0, "gradient_passes": 5.0, "update_passes": 2.5}
    found = fitted(base, kind, ranks, planned(base.model_copy(update=passes), kind, ranks))
    assert {name: getattr(found, name) for name in passes} == pytest.approx(passes)


def test_mixers_and_collectives_are_as_the_steps_had_them() -> None:
    base = this_machine(2)
    truth = base.model_copy(update={"mixer_passes": dict.fromkeys(MIXERS, 23.0), "tensor_share": 0.4})

    def step(shape: StepShape, **given: Any) -> MeasuredStep:
        config = step_config("cpu", 2, shape, **given)
        time = Planner(config, truth).plan(config.parallel).time
        return MeasuredStep(shape, time.compute + time.launches + time.tensor, time.update)

    many, few = SHAPES["cpu"]
    found = of_mixers(base, "cpu", 2, {mixer: step(few, mixer=mixer) for mixer in MIXERS})
    assert found.mixer_passes == pytest.approx(truth.mixer_passes)
    assert of_tensor(found, "cpu", 2, step(many, tensor=2)).tensor_share == pytest.approx(0.4)
    lines = calibration_text(Calibration(format=1, measured="now", ranks={2: found})).splitlines()
    assert [line.split() for line in lines if "gated_delta" in line] == [
        ["passes", "over", "activations,", "gated_delta", "23.0"]
    ]


def test_every_causal_mixer_is_measured() -> None:
    """Those that are not have layers that see what comes later, and are planned like windows."""
    assert {"window", *MIXERS} == {kind for kind in kinds.MIXERS if kinds.MIXERS[kind].is_causal}


def test_steps_that_are_faster_than_their_products_have_no_passes() -> None:
    base = this_machine(1)
    fast = [MeasuredStep(shape, compute / 100, 1e-9) for shape, compute, _ in planned(base, "cpu", 1)]
    found = fitted(base, "cpu", 1, fast)
    assert found.activation_passes == found.gradient_passes == 0 < found.update_passes < 1


def test_a_step_is_measured_as_it_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the engine, whose AdamW is torch's fused one on a CPU."""
    engines: list[Engine] = []
    build = steps.build_engine
    monkeypatch.setattr(steps, "build_engine", lambda *given: engines.append(build(*given)) or engines[-1])
    shape = StepShape(1, 128)
    with single_process() as device:
        found = steps.measured_step(step_config("cpu", 1, shape), shape, 0, device, 0.0)
    (engine,) = engines
    assert engine.optimizer.defaults["fused"] and engine.updates == 6  # two that warm up, and the fewest
    assert found.shape == shape and found.compute > 0 and found.update > 0


@pytest.mark.parametrize(
    ("seconds", "shares", "said"),
    [
        ([1.0, 1.1, 1.0, 1.05, 1.3], [1.0] * 5, None),  # one is allowed
        ([1.0, 1.1, 1.4, 1.05, 1.3], [1.0] * 5, "up to 1.4 times its best time, and longer than usual in 40%"),
        ([1.0] * 5, [0.95, 0.5, 0.6, 0.7, 0.9], "a rank had 70% of its CPUs"),  # all the time
    ],
)
def test_other_work_is_noticed(seconds: list[float], shares: list[float], said: str | None) -> None:
    with single_process() as device:
        probe = Probe(device)
        probe.seconds, probe.shares = seconds, shares
        found = probe.disturbance()
    assert found is None if said is None else said in str(found)


def test_the_probe_looks_after_each_measurement() -> None:
    with single_process() as device:
        clock = Clock(device, 0.0)
        for _ in range(3):
            clock(lambda: None)
    assert len(clock.probe.seconds) == len(clock.probe.shares) == 3
    assert min(clock.probe.seconds) > 0 and 0 < min(clock.probe.shares) <= max(clock.probe.shares) <= 1


@pytest.mark.parametrize(("precision", "widths"), [("fp32", [16, 32, 64]), ("bf16", [16, 32])])
def test_slow_products_of_a_precision_that_layers_do_not_have_end_early(precision: str, widths: list[int]) -> None:
    """A processor without products in bf16 took more than five minutes, and the calibration was given up."""
    sizes = computing.Sizes(8, (16, 32, 64), 0, 16, 1, 8, 8, 1, "fp32", 16, cold=1)
    seconds = iter([0.5, 5.0, 5.0])

    class SlowClock(Clock):
        def __call__(self, run: Callable[[], Any]) -> float:
            run()
            return next(seconds)

    with single_process() as device:
        found = computing.product_rates(device, SlowClock(device, 0.0), sizes, precision)
    assert list(found) == widths
    assert found[32] == pytest.approx(3 * 2 * 8 * 32 * 4 * 32 / 5.0)


def test_a_measurement_that_never_ends_is_named() -> None:
    """Each has the whole time: a slow machine that gets on is waited for."""
    given_up = Event()
    limit = machine._Limit(0.1, given_up.set)
    for what in ("memory", "attention", "the disk"):
        limit.begin(what)
    assert given_up.wait(60) and limit.passed == "the disk"


def test_a_disturbed_calibration_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On standard error, in the file, and in the plan of a device that was disturbed."""
    with single_process() as device:
        result = _rank(tmp_path, device)
    capsys.readouterr()
    disturbed = {**result, "disturbed": "a rank had 70% of its CPUs"}
    monkeypatch.setattr(machine, "_counts", lambda _: [1, 2])
    monkeypatch.setattr(
        machine, "_measured", lambda _, ranks, *__: json.loads(json.dumps((result, disturbed)[ranks - 1]))
    )
    path = tmp_path / "here.yaml"
    with pytest.raises(SystemExit) as end:
        main(["plan", "--calibrate", "--device", "cpu", "--out", str(path), "--json"])
    told = capsys.readouterr()
    assert end.value.code == 0 and "while 2 ranks were measured: a rank had 70% of its CPUs" in told.err
    assert "brt plan --calibrate again" in told.err and "1 ranks" not in told.err
    found = read_device(path)
    assert isinstance(found, Calibration) and found.disturbed == {2: "a rank had 70% of its CPUs"}
    assert "disturbed" in found.of(2).source and "disturbed" not in found.of(1).source
    assert json.loads(told.out)["disturbed"] == {"2": "a rank had 70% of its CPUs"}


def _rank(folder: Path, device: Device) -> dict[str, object]:
    """What a rank finds, as fast as it can."""
    import torch.distributed as dist

    from brt_dist.parallel.layout import Layout

    assert dist.get_world_size() == 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RANK", "0")
        patch.setattr(rank, "disk_rate", lambda _: 1e9)
        small = computing.Sizes(64, (32, 512), 1 << 16, 512, 8, 128, 128, 1, "fp32", 64, 1 << 16)
        patch.setitem(computing.SIZES, "cpu", small)
        patch.setattr(fitting, "MIXERS", {"linear": {}})
        found = rank.measured(folder, Layout(1, 1, 1, 1, 1, 0), device, 0.0)
    assert found["disturbed"] is None or isinstance(found["disturbed"], str)
    return {**found, "disturbed": None}
