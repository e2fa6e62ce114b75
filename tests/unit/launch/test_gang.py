"""512 nodes are queried at once: the time does not grow with their number.  Time is counted, not measured."""

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest

from brt_dist.config.environment import CPU_DEFAULTS
from brt_dist.config.loading import load
from brt_dist.config.schema import Config
from brt_dist.errors import ExitCode, LaunchError, PlatformError
from brt_dist.parallel.device_choice import DeviceChoice
from brt_dist.run_directory import RunDirectory
from launch.doctor.examine import all_reduce_seconds, preflight
from launch.doctor.node import NodeReport
from launch.nodes.agent import NodeInfo
from launch.nodes.agents import NoAnswer
from launch.nodes.gang import Gang
from launch.nodes.processes import End
from launch.run.attempt_record import AttemptRecord
from launch.supervision import attempt

NODES, SLOWEST = 512, 9.0


class FakeAgents:
    """Agents that answer late, on a clock that stands still unless somebody waits for them.

    Attributes:
        now: seconds that have been waited.
        most: largest number of calls in progress at once.
        dead: nodes that never answer.
    """

    addresses: Sequence[str | None] = [f"10.0.{node // 256}.{node % 256}" for node in range(NODES)]

    def __init__(self) -> None:
        self.now, self.most, self._pending = 0.0, 0, 0
        self.dead: set[int] = set()
        self.released = False
        self._delays = random.Random(0)

    def begin(self, node: int, method: str, arguments: Sequence[Any]) -> Any:
        self._pending += 1
        self.most = max(self.most, self._pending)
        end = self.now + self._delays.uniform(0.0, SLOWEST)
        return (float("inf") if node in self.dead else end), ANSWERS[method](node, *arguments)

    def answers(self, calls: Sequence[Any], seconds: float) -> list[Any]:
        deadline = self.now + seconds
        self._pending -= len(calls)
        self.now = max(min(end, deadline) for end, _ in calls)
        return [answer if end <= deadline else NoAnswer("no answer") for end, answer in calls]

    def release(self) -> None:
        self.released = True


def written(node: int, folder: str, mark: str) -> NodeReport:
    (Path(folder) / mark).write_text(mark)
    return NodeReport(mark, {"torch": "2"}, (), 1 << 40, 1 << 40, None)


ANSWERS: dict[str, Callable[..., Any]] = {
    "describe": lambda node, address: NodeInfo(f"node{node}", address, 8, 1),
    "free_port": lambda node, address: 29500,
    "start": lambda node, request: None,
    "ended": lambda node: [End(node, 0, 0.0, False)],
    "clock": lambda node: 0.0,
    "report": written,
    "unseen": lambda node, folder, marks: [mark for mark in marks if not (Path(folder) / mark).is_file()],
    "listen": lambda node, address, connections: 29501 if connections >= NODES else 0,
    "reach": lambda node, address, port: None,
    "dump": lambda node: {node: "is stopped"} if node == 3 else {},
    "kill": lambda node: None,
}


@pytest.fixture
def config(tmp_path: Path) -> Config:
    text = json.dumps({"data": {"dataset": "/d"}, "run": {"directory": str(tmp_path), "steps": 5}})
    return load(text, [f"launch.nodes={NODES}", f"parallel.data={NODES}", f"data.streams={NODES}"]).config


@pytest.fixture
def agents() -> FakeAgents:
    return FakeAgents()


def gang_of(config: Config, agents: FakeAgents) -> Gang:
    return Gang(config, DeviceChoice("cpu", "for a test"), lambda *_: agents)


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_ranks_on_cpus_get_the_settings_of_their_allocator(
    kind: Literal["cpu", "cuda"], config: Config, agents: FakeAgents, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed: list[dict[str, str]] = []
    monkeypatch.setitem(ANSWERS, "start", lambda node, request: passed.append(request.passed))
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    with Gang(config, DeviceChoice(kind, "for a test"), lambda *_: agents) as gang:
        gang.start(("rank",), tmp_path, tmp_path)
        monkeypatch.setenv("GLIBC_TUNABLES", "of the user")
        gang.start(("rank",), tmp_path, tmp_path)
    found = [one.get("GLIBC_TUNABLES") for one in passed]
    assert found[:NODES] == [CPU_DEFAULTS["GLIBC_TUNABLES"] if kind == "cpu" else None] * NODES
    assert found[NODES:] == ["of the user"] * NODES


def test_starting_looking_and_killing_take_as_long_as_the_slowest_node(
    config: Config, agents: FakeAgents, tmp_path: Path
) -> None:
    with gang_of(config, agents) as gang:
        assert agents.now <= SLOWEST and agents.most == NODES
        assert [node.host for node in gang.nodes] == [f"node{node}" for node in range(NODES)]
        agents.now = 0.0
        gang.start(("rank",), tmp_path, tmp_path)
        assert agents.now <= 2 * SLOWEST  # the port of the rendezvous, then all ranks
        agents.now = 0.0
        assert sorted(gang.ended()) == list(range(NODES))
        assert gang.dump() == {3: "on node3 is stopped"}
        assert agents.now <= 2 * SLOWEST
        agents.now = 0.0
    assert agents.now <= SLOWEST and agents.released


def test_the_checks_before_a_start_take_five_questions(config: Config, agents: FakeAgents, tmp_path: Path) -> None:
    with gang_of(config, agents) as gang:
        agents.now = 0.0
        found = preflight(gang, config, tmp_path)
        assert agents.now <= 5 * SLOWEST
    by_check = {finding.check: finding.status for finding in found}
    assert by_check["shared storage"] == by_check["address of rank 0"] == by_check["versions"] == "ok"


def test_dead_nodes_cost_one_deadline_and_no_other_node(config: Config, agents: FakeAgents, tmp_path: Path) -> None:
    with gang_of(config, agents) as gang:
        gang.start(("rank",), tmp_path, tmp_path)
        agents.dead = {5, 9}
        agents.now = 0.0
        ends = gang.ended()
        assert agents.now == 30.0
        lost = {rank for rank, end in ends.items() if end.code == ExitCode.LOST_NODE}
        assert lost == {5, 9} and len(ends) == NODES
        agents.now = 0.0
        assert len(gang.ended()) == NODES
        assert agents.now <= SLOWEST  # they are not asked again


def test_every_node_that_does_not_start_is_named(config: Config, agents: FakeAgents, tmp_path: Path) -> None:
    with gang_of(config, agents) as gang:
        agents.dead = {1, 511}
        with pytest.raises(LaunchError, match="node node1: no answer; node node511: no answer"):
            gang.start(("rank",), tmp_path, tmp_path)


def test_a_run_that_used_gpus_does_not_go_on_without_them(config: Config, tmp_path: Path) -> None:
    """run.device=auto would mean CPUs once the GPUs of a node are broken."""
    lost = DeviceChoice("cpu", "no node has a GPU")
    attempt._refuse_other_device(tmp_path, config, lost)  # the first attempt may use either
    folder = RunDirectory(tmp_path).attempt(1)
    folder.path.mkdir(parents=True)
    AttemptRecord(1, start=1.0, device="cuda").write(folder)
    attempt._refuse_other_device(tmp_path, config, DeviceChoice("cuda", "a GPU for each rank"))
    with pytest.raises(
        PlatformError, match=r"has trained on GPUs.*because no node has a GPU; nearest: run\.device=cpu"
    ):
        attempt._refuse_other_device(tmp_path, config, lost)
    told = config.model_copy(update={"run": config.run.model_copy(update={"device": "cpu"})})
    attempt._refuse_other_device(tmp_path, told, lost)


def test_ranks_are_told_what_was_decided(config: Config) -> None:
    assert attempt._differences(config, config, DeviceChoice("cuda", "")) == ["run.device=cuda"]
    parallel = config.parallel.model_copy(update={"data": 3, "uneven_streams": True})
    smaller = config.model_copy(update={"parallel": parallel})
    told = attempt._differences(config, smaller, DeviceChoice("cpu", ""))
    assert told == ["parallel.data=3", "parallel.uneven_streams=true", "run.device=cpu"]
    assert load(config.model_dump_json(), told).config.parallel == smaller.parallel


def test_time_limits_grow_with_the_nodes(config: Config) -> None:
    assert all_reduce_seconds(2) < 61 < all_reduce_seconds(NODES)
    assert config.launch.start_seconds == 300 + NODES
    assert (
        load(
            "data: {dataset: d}\nrun: {directory: r, steps: 1}", ["launch.start_timeout_seconds=7"]
        ).config.launch.start_seconds
        == 7
    )
