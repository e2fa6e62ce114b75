"""All ranks act on what one rank sees go wrong: a gradient that is not finite, a divergence, a slow rank."""

import json
import math
import time
from pathlib import Path
from typing import Any

import pytest

from brt_dist.config.guards import GuardsConfig
from brt_dist.config.schema import Config
from brt_dist.errors import DivergedError, ExitCode
from brt_dist.training.adjustments import Adjustments
from tests.faults.inject import poison, slow_down
from tests.parallel.pool import RankPool
from tests.parallel.relayout import config, documents, saved

pytestmark = pytest.mark.slow

STEPS, BAD = 5, 3
NEVER = STEPS + 2  # even the evaluation after the last step is not left for a stop
LAYOUTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "dp2-zero0": ({"data": 2, "zero_stage": 0}, {}),
    "dp2-zero1": ({"data": 2}, {}),
    "dp2-zero2-bf16": ({"data": 2, "zero_stage": 2}, {"precision": "bf16"}),
    "dp2-zero3": ({"data": 2, "zero_stage": 3}, {}),
    "tp2-pp2": ({"tensor": 2, "pipeline": 2}, {}),
    "tp2-zero0": ({"tensor": 2, "zero_stage": 0}, {}),
    "pp2-bf16": ({"pipeline": 2}, {"precision": "bf16"}),
}
_OTHERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "one": ({}, {}),
    "tp2-sequence": ({"tensor": 2, "sequence_parallel": True}, {}),
}


def rank_main(
    rank: int, store: str, given: Config, poisoned: int | None, slow: int | None, stop_after: int = NEVER
) -> int:
    """A run on one rank; its exit code.  Rank `poisoned` has a bad gradient in step BAD, rank `slow` is slow.

    The rank is asked to stop after step `stop_after`.
    """
    import torch.distributed as dist

    from brt_dist.data.dataset import Dataset
    from brt_dist.event_log import EventLog
    from brt_dist.parallel.device import choose
    from brt_dist.parallel.layout import Layout, finalize, initialize
    from brt_dist.training.build import build_trainer
    from brt_dist.training.stopping import StopFlag

    layout = Layout.of(given, rank)
    device = choose("cpu", rank)
    initialize(layout, device, 120.0, dist.FileStore(store, layout.world_size))
    run = Path(given.run.directory)
    events = EventLog(run, 1, enabled=rank == 0)
    if rank == poisoned:
        poison(BAD)

    class StopAfter(StopFlag):
        @property
        def asked(self) -> bool:  # type: ignore[override]
            return trainer.state.step >= stop_after - 1  # asked in the step itself, before it is counted

        @asked.setter
        def asked(self, value: bool) -> None: ...

    try:
        with Dataset.open(given.data.dataset) as data:
            trainer = build_trainer(given, run, layout, device, events, data, None, StopAfter())
            if rank == slow:
                slow_down(0.5)
            try:
                return int(trainer.run())
            except DivergedError as error:
                return int(error.exit_code)
            finally:
                trainer.close()
    finally:
        events.close()
        finalize()


def settings(folder: Path, name: str, layout: str, **guards: Any) -> Config:
    parallel, run = (LAYOUTS | _OTHERS)[layout]
    given = config(folder / "dataset", folder / name, parallel, run={"steps": STEPS, "checkpoint_every": 1, **run})
    (folder / name).mkdir()
    return given.model_copy(
        update={"run": given.run.model_copy(update={"guards": given.run.guards.model_copy(update=guards)})}
    )


def events(given: Config, kind: str) -> list[dict[str, Any]]:
    lines = (Path(given.run.directory) / "metrics.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_bad_gradient_of_one_rank_is_left_out_by_all(ranks: RankPool, tmp_path: Path, layout: str) -> None:
    """The state after it equals, bit for bit, that of a run in which the step was skipped from the beginning."""
    documents(tmp_path)
    left_out = settings(tmp_path, "left out", layout)
    Adjustments().without(BAD, BAD).save(Path(left_out.run.directory))
    poisoned = settings(tmp_path, "poisoned", layout, nonfinite="skip")
    world = left_out.parallel.world_size
    assert set(ranks.run(world, rank_main, left_out, None, None)) == {ExitCode.FINISHED}
    assert set(ranks.run(world, rank_main, poisoned, world - 1, None)) == {ExitCode.FINISHED}
    found = [saved(Path(given.run.directory) / "checkpoints") for given in (left_out, poisoned)]
    assert found[0] == found[1] and found[0]["updates"] == STEPS - 1
    assert [event["step"] for event in events(poisoned, "step")] == [1, 2, 4, 5]
    assert [event["step"] for event in events(poisoned, "skip")] == [BAD]


@pytest.mark.parametrize("layout", ["dp2-zero0", "tp2-pp2"])
def test_a_bad_gradient_of_one_rank_ends_all(ranks: RankPool, tmp_path: Path, layout: str) -> None:
    documents(tmp_path)
    given = settings(tmp_path, "run", layout)
    world = given.parallel.world_size
    assert set(ranks.run(world, rank_main, given, world - 1, None)) == {ExitCode.DIVERGED}
    assert saved(Path(given.run.directory) / "checkpoints")["step"] == BAD - 1
    (diverged,) = events(given, "diverged")
    assert diverged["step"] == BAD


@pytest.mark.parametrize("layout", ["dp2-zero1", "tp2-pp2"])
def test_a_slow_rank_is_named(ranks: RankPool, tmp_path: Path, layout: str) -> None:
    documents(tmp_path)
    given = settings(tmp_path, "run", layout, straggler_every=2)
    world = given.parallel.world_size
    assert set(ranks.run(world, rank_main, given, None, world - 1)) == {ExitCode.FINISHED}
    found = events(given, "straggler")
    assert world - 1 in {event["rank"] for event in found}  # beside it any rank that a busy machine slows


def rank_waits(rank: int, store: str, given: Config, found: str) -> int:
    """Rank 1 does not come to its third step until rank 0 has given up; the exit code of how it ended."""
    import torch.distributed as dist

    from brt_dist.data.dataset import Dataset
    from brt_dist.event_log import EventLog
    from brt_dist.failure import exit_code_of
    from brt_dist.parallel.device import choose
    from brt_dist.parallel.layout import Layout, initialize
    from brt_dist.training.build import build_trainer
    from brt_dist.training.stopping import StopFlag

    layout = Layout.of(given, rank)
    device = choose("cpu", rank)
    initialize(layout, device, 240.0, dist.FileStore(store, layout.world_size))
    run = Path(given.run.directory)
    trainer = build_trainer(
        given, run, layout, device, EventLog(run, 1, rank == 0), Dataset.open(given.data.dataset), None, StopFlag()
    )

    def wait(*_: Any) -> None:
        while rank == 1 and trainer.state.step == 2 and not Path(found).exists():
            time.sleep(0.05)

    trainer.engine.stage.register_forward_pre_hook(wait)
    try:
        return int(trainer.run())
    except RuntimeError as error:
        Path(found).touch()
        return int(exit_code_of(error))


def test_a_rank_that_does_not_come_is_waited_for_only_so_long(ranks: RankPool, tmp_path: Path) -> None:
    """Much less long than at the start, where the limit is 240 s here."""
    documents(tmp_path)
    given = settings(tmp_path, "run", "dp2-zero1", collective_seconds=5.0)
    first, second = ranks.run(2, rank_waits, given, str(tmp_path / "gave up"))
    assert first == ExitCode.HUNG and second in (ExitCode.HUNG, ExitCode.LOST_NODE)
    assert [event["step"] for event in events(given, "step")] == [1, 2]


def rank_decides(rank: int, store: str) -> tuple[bool, bool, float]:
    """Whether this rank ends the run by its own loss, whether by the one that all agreed on, and the latter.

    Both ranks are at the threshold of a spike, rank 1 by the smallest possible difference above it.
    """
    import torch
    import torch.distributed as dist

    from brt_dist.parallel.control import Control, StepResult
    from brt_dist.parallel.device import choose
    from brt_dist.training.hooks.number_guard import NumberGuard

    dist.init_process_group("gloo", store=dist.FileStore(store, 2), rank=rank, world_size=2)
    settings = GuardsConfig(spike_window=10, spike_deviations=20.0, on_spike="stop")
    threshold = 2.0 + 20.0 * (0.01 * 2.0)
    mine = StepResult(threshold if rank == 0 else math.nextafter(threshold, math.inf), 1.0)
    loss = torch.tensor(mine.loss, dtype=torch.float64)
    agreed = Control([], choose("cpu", rank)).agree(loss, torch.tensor(mine.grad_norm), asked=False)

    def ends(result: StepResult) -> bool:
        guard = NumberGuard(settings, lambda event: None)
        for step in range(1, 11):
            guard.check(StepResult(2.0, 1.0), step)
        try:
            guard.check(result, 11)
        except DivergedError:
            return True
        return False

    found = ends(mine), ends(agreed), agreed.loss
    dist.destroy_process_group()
    return found


def test_one_ulp_between_ranks_at_a_threshold_divides_them_only_without_agreement(ranks: RankPool) -> None:
    alone, agreed, losses = zip(*ranks.run(2, rank_decides), strict=True)
    assert alone == (False, True)
    assert agreed == (True, True) and losses[0] == losses[1]


def test_sizes_of_states_and_gates_are_the_same_in_every_layout(ranks: RankPool, tmp_path: Path) -> None:
    documents(tmp_path)
    found = {}
    for layout in ("one", *LAYOUTS, "tp2-sequence"):
        if "bf16" not in layout:
            given = settings(tmp_path, layout, layout)
            ranks.run(given.parallel.world_size, rank_main, given, None, None)
            ((found[layout],),) = [event["layers"] for event in events(given, "memory")]
    assert len(found) == 7 and found["one"]["layer"] == 1
    for statistics in found.values():
        assert statistics == pytest.approx(found["one"], rel=1e-4)
    assert 0 < found["one"]["state_rms"] < found["one"]["state_max"]
    assert 0.3 < found["one"]["kept"] < 0.7  # biases begin around zero


@pytest.mark.parametrize("cause", ["adjustments", "not finite"])
def test_a_step_that_is_left_out_counts_as_a_step_and_not_as_an_update(
    ranks: RankPool, tmp_path: Path, cause: str
) -> None:
    """The schedule of the learning rate moves on with it, and a run may stop just before it and just after it."""
    documents(tmp_path)
    found = {}
    for name, stops in (("straight", [NEVER]), ("stopped", [BAD - 1, BAD, NEVER])):
        given = settings(tmp_path, name, "one", nonfinite="skip")
        rates = {"schedule": "cosine", "warmup_steps": 2, "learning_rate": 3e-3, "final_ratio": 0.1}
        given = given.model_copy(update={"optimizer": given.optimizer.model_copy(update=rates)})
        if cause == "adjustments":
            Adjustments().without(BAD, BAD).save(Path(given.run.directory))
        poisoned = 0 if cause == "not finite" else None
        codes = [ranks.run(1, rank_main, given, poisoned, None, stop)[0] for stop in stops]
        assert codes == [*[ExitCode.PREEMPTED] * (len(stops) - 1), ExitCode.FINISHED]
        trained = {event["step"]: event["learning_rate"] for event in events(given, "step")}
        cosine = {step: 0.5 * (1 + math.cos(math.pi * (step - 2) / (STEPS - 2))) for step in (2, 4, 5)}
        expected = {1: 1.5e-3} | {step: 3e-4 + 2.7e-3 * share for step, share in cosine.items()}
        assert trained == pytest.approx(expected)
        assert [event["step"] for event in events(given, "skip")] == [BAD]
        found[name] = saved(Path(given.run.directory) / "checkpoints")
        assert (found[name]["step"], found[name]["updates"]) == (STEPS, STEPS - 1)
        assert events(given, "step")[-1]["tokens"] == found[name]["tokens"]
    assert found["straight"] == found["stopped"]
