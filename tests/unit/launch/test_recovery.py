"""What follows when an attempt fails: decisions, layouts for fewer nodes, hangs, adjustments.  No processes."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brt_dist.config.elastic import on_fewer_nodes
from brt_dist.config.guards import RecoveryConfig
from brt_dist.config.rules import check
from brt_dist.config.schema import Config
from brt_dist.errors import ConfigError, ExitCode
from brt_dist.failure import Failure
from brt_dist.parallel.layout import Layout
from brt_dist.training.adjustments import Adjustments
from launch.nodes.processes import End
from launch.run.attempt_record import read_attempt
from launch.supervision.attempts import Attempts
from launch.supervision.hang import HangWatch
from launch.supervision.recovery import Decision, Recovery
from launch.supervision.signals import StopRequests
from launch.supervision.verdict import Verdict, judge, verdict_of
from launch.views.summary import verdict_words


class Run:
    """A run as the rules see it."""

    def __init__(self, **settings: object) -> None:
        self.recovery = Recovery(RecoveryConfig.model_validate(settings), 0)
        self.adjustments = Adjustments()
        self.saved = self.step = 0

    def ends(self, code: ExitCode, reason: str = "why", at: int | None = None) -> Decision:
        decision = self.recovery.decide(
            Verdict.of(Failure(code, reason, step=at)),
            saved=self.saved,
            step=self.step,
            adjustments=self.adjustments,
        )
        self.adjustments = decision.adjustments or self.adjustments
        return decision


def test_accidents_are_retried_and_progress_gives_the_retries_back() -> None:
    run = Run(retries=2, pause_seconds=4)
    found = []
    for saved in (0, 0, 10, 10, 10):
        run.saved = saved
        decision = run.ends(ExitCode.LOST_NODE)
        found.append((decision.action, decision.pause))
    assert found == [("retry", 4), ("retry", 8), ("retry", 4), ("retry", 8), ("stop", 0)]


@pytest.mark.parametrize(
    "code",
    [
        ExitCode.FINISHED,
        ExitCode.PREEMPTED,
        ExitCode.INTERRUPTED,
        ExitCode.BAD_CONFIG,
        ExitCode.BAD_DATA,
        ExitCode.BAD_CHECKPOINT,
        ExitCode.OUT_OF_MEMORY,
        ExitCode.DIVERGED,
        ExitCode.USAGE,
    ],
)
def test_what_would_end_the_same_way_is_not_retried(code: ExitCode) -> None:
    assert Run().ends(code, at=5).action == "stop"


@pytest.mark.parametrize("code", [ExitCode.INTERNAL, ExitCode.HUNG, ExitCode.LOST_NODE, ExitCode.ENVIRONMENT])
def test_accidents(code: ExitCode) -> None:
    assert Run().ends(code).action == "retry"
    assert Run(retries=0).ends(code).action == "stop"


def test_a_defect_that_comes_again_at_the_same_step_ends_the_run() -> None:
    run = Run(retries=100)
    run.step = 7
    assert run.ends(ExitCode.INTERNAL, "E: x").action == "retry"
    assert run.ends(ExitCode.INTERNAL, "E: y").action == "retry"
    assert run.ends(ExitCode.INTERNAL, "E: y").action == "stop"


def test_a_divergence_leaves_out_the_steps_that_led_to_it() -> None:
    run = Run(diverged="skip", skip_steps=3, rollbacks=2)
    run.saved = 10
    assert run.ends(ExitCode.DIVERGED, at=14).action == "rollback"
    assert [run.adjustments.skips(step) for step in range(10, 17)] == [False, False, True, True, True, False, False]
    decision = run.ends(ExitCode.DIVERGED, at=11)  # never before what is saved
    assert decision.why == "resume after step 10 and skip step 11" and run.adjustments.skips(11)
    assert run.ends(ExitCode.DIVERGED, at=15).action == "stop"


def test_a_divergence_lowers_the_rate_from_the_checkpoint_on() -> None:
    run = Run(diverged="lower", lower_factor=0.5)
    run.saved = 10
    run.ends(ExitCode.DIVERGED, at=14)
    run.ends(ExitCode.DIVERGED, at=14)
    assert [run.adjustments.rate_factor(step) for step in (10, 11, 100)] == [1.0, 0.25, 0.25]
    assert Run(diverged="lower").ends(ExitCode.DIVERGED, at=None).action == "stop"


def test_adjustments_outlive_the_process(tmp_path: Path) -> None:
    assert Adjustments.load(tmp_path) == Adjustments()
    adjusted = Adjustments().without(3, 4).slower(9, 0.25)
    adjusted.save(tmp_path)
    assert Adjustments.load(tmp_path) == adjusted
    (tmp_path / "adjustments.json").write_text('{"skipped": [[1]]}')
    with pytest.raises(ConfigError, match="remove it to resume"):
        Adjustments.load(tmp_path)


layouts = st.fixed_dictionaries(
    {
        "tensor": st.sampled_from([1, 2, 4]),
        "pipeline": st.sampled_from([1, 2]),
        "data": st.integers(1, 12),
        "micro_batch": st.integers(1, 3),
        "zero_stage": st.just(1),
    }
)


@given(parallel=layouts, per_row=st.integers(1, 3), nodes=st.integers(2, 8), left=st.integers(1, 7))
def test_fewer_nodes_share_the_same_streams(parallel: dict[str, int], per_row: int, nodes: int, left: int) -> None:
    world = parallel["tensor"] * parallel["pipeline"] * parallel["data"]
    if world % nodes or left >= nodes:
        return
    given_config = Config.model_validate(
        {
            "model": {"layers": 4, "recurrent_layers": [-1]},
            "data": {"dataset": "d", "streams": parallel["data"] * parallel["micro_batch"] * per_row},
            "parallel": parallel,
            "run": {"directory": "r", "steps": 2000},
            "launch": {"nodes": nodes},
        }
    )
    check(given_config)
    smaller = on_fewer_nodes(given_config, left)
    local = world // nodes
    model = parallel["tensor"] * parallel["pipeline"]
    if smaller is None:
        # not even one replica, spread evenly over any number of nodes
        assert all(model % count or model // count > local for count in range(1, left + 1))
        return
    check(smaller)
    assert smaller.launch.nodes <= left
    assert smaller.parallel.world_size // smaller.launch.nodes <= local
    # no more replicas would fit, on any number of nodes: no node stays idle because a number does not divide
    units = given_config.data.streams // parallel["micro_batch"]
    for more in range(smaller.parallel.data + 1, min(left * local // model, units) + 1):
        assert all(model * more % count or model * more // count > local for count in range(1, left + 1))
    by_rank = [Layout.of(smaller, rank).local_streams for rank in range(smaller.parallel.world_size)]
    assert sorted({stream for streams in by_rank for stream in streams}) == list(range(given_config.data.streams))
    counts = {len(streams) // parallel["micro_batch"] for streams in by_rank}
    assert max(counts) - min(counts) <= 1 and max(counts) == smaller.micro_batches
    unchanged = smaller.parallel.model_copy(update={"data": parallel["data"], "uneven_streams": False})
    assert unchanged == given_config.parallel and smaller.data == given_config.data


def test_losing_one_of_64_nodes_costs_one_node_and_not_half_the_run() -> None:
    given_config = Config.model_validate(
        {
            "model": {"heads": 8},
            "data": {"dataset": "d", "streams": 1024},
            "parallel": {"tensor": 8, "data": 64},
            "run": {"directory": "r", "steps": 2000, "device": "cuda"},
            "launch": {"nodes": 64},
        }
    )
    check(given_config)
    smaller = on_fewer_nodes(given_config, 63)
    assert smaller is not None
    assert (smaller.launch.nodes, smaller.parallel.data, smaller.micro_batches) == (63, 63, 17)  # 16 before
    check(smaller)


def beat(folder: Path, phase: str, seconds: float | None, time: float) -> None:
    (folder / "heartbeat.json").write_text(json.dumps({"phase": phase, "step_seconds": seconds, "time": time}))


def test_hangs(tmp_path: Path) -> None:
    now = [0.0]
    watch = HangWatch(10.0, 20.0, 100.0, clock=lambda: now[0])

    def after(seconds: float) -> str | None:
        now[0] += seconds
        return watch.look(tmp_path)

    assert after(99) is None
    beat(tmp_path, "starting", None, 1.0)
    assert after(5) is None and after(99) is None
    beat(tmp_path, "training", 0.1, 2.0)
    assert after(1) is None and after(9.9) is None
    assert after(0.2) == "no step for 0:10; a step usually takes 0.1 s"
    beat(tmp_path, "training", 3.0, 3.0)  # slow steps: twenty times that
    assert after(1) is None and after(59) is None and after(2) is not None
    beat(tmp_path, "evaluating", 3.0, 4.0)
    assert after(1) is None and after(99) is None
    assert after(2) == "evaluating for 1:41 (launch.recovery.slow_seconds)"
    (tmp_path / "heartbeat.json").write_text("{")
    assert after(0) is not None


def test_a_store_that_is_away_is_no_hang() -> None:
    sections = {"data": {"dataset": "s3://b/d"}, "run": {"directory": "r", "steps": 1}}
    config = Config.model_validate(sections)
    now = [0.0]
    watch = HangWatch.of(config)
    watch._clock = lambda: now[0]
    watch._seen, watch._since = {"phase": "training", "step_seconds": 0.1}, 0.0
    now[0] = config.data.cache.retry_seconds + 30
    assert watch.look(Path("nowhere")) is None


def report(folder: Path, rank: int, code: ExitCode) -> None:
    content = {"rank": rank, "host": "h", "time": 10.0, "type": "E", "message": "m", "exit_code": int(code)}
    (folder / f"rank_{rank:03d}.error.json").write_text(json.dumps(content))


def test_a_node_that_is_lost_is_the_cause_of_what_its_peers_report(tmp_path: Path) -> None:
    ends = {0: End(0, 16, 10.0, False), 1: End(1, int(ExitCode.LOST_NODE), 40.0, False)}
    report(tmp_path, 0, ExitCode.LOST_NODE)
    verdict = judge(ends, tmp_path, stop_asked=False)
    assert (verdict.exit_code, verdict.failed_rank) == (ExitCode.LOST_NODE, 1)
    report(tmp_path, 0, ExitCode.DIVERGED)  # that is no consequence
    assert judge(ends, tmp_path, stop_asked=False).exit_code == ExitCode.DIVERGED


def test_decisions_are_plain_data() -> None:
    decision = Decision("retry", "x", 1.0)
    assert replace(decision, adjustments=Adjustments()).to_json() == {"action": "retry", "why": "x"}


def test_the_step_of_a_divergence_is_that_of_the_record(tmp_path: Path) -> None:
    """From the record, over the answer of the attempt's process, to the steps that the ranks skip."""
    recovery = {"diverged": "skip", "skip_steps": 1}
    sections = {
        "data": {"dataset": "d"},
        "run": {"directory": str(tmp_path), "steps": 20},
        "launch": {"recovery": recovery},
    }
    attempts = Attempts(Config.model_validate(sections), (), None, StopRequests(), print, lambda: None)
    failure = Failure(ExitCode.DIVERGED, "step 12: loss nan", 0, "h", 12, 10.0, "DivergedError")
    answer = json.loads(json.dumps(Verdict.of(failure).to_json()))
    assert attempts._decide(verdict_of(answer), 1).action == "rollback"
    assert [step for step in range(1, 21) if Adjustments.load(tmp_path).skips(step)] == [12]
    record = read_attempt(tmp_path, 1)
    assert record.failure and record.failure["step"] == 12 and record.decision["action"] == "rollback"


def test_decisions_are_told_in_words() -> None:
    assert Decision("retry", "2 retries left; each checkpoint resets them", 5.0).told == (
        "retrying in 5 s (2 retries left; each checkpoint resets them)"
    )
    assert Decision("rollback", "resume after step 4").told == "rolling back: resume after step 4"


def test_verdicts_are_told_in_words() -> None:
    assert verdict_words("preempted") == verdict_words("interrupted") == "stopped"
    assert verdict_words("out_of_memory") == "out of memory" and verdict_words("finished") == "finished"
    assert all("_" not in verdict_words(code.name.lower()) for code in ExitCode)
