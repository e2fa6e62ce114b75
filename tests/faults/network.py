"""Faults of two nodes in network namespaces of this machine: a node is gone, the network between them is cut.

Needs root, iproute2 and a kernel that gives namespaces.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from brt_dist.events import StepEvent
from tests.cluster.check_namespaces import ray_on
from tests.cluster.namespaces import Machine, machines
from tests.faults.bench import AT, Bench, Outcome, Run, wait_for
from tests.faults.scenarios import expect

Scenario = Callable[[Bench, dict[int, float]], Outcome]
TWO = ("launch.nodes=2", "launch.preflight=false")


@contextmanager
def two_nodes(bench: Bench, name: str, *settings: str) -> Iterator[tuple[list[Machine], Run]]:
    """A run over two namespaces that has reached step AT."""
    folder = bench.folder / f"ray_{name}"
    folder.mkdir()
    with machines(2) as nodes, ray_on(nodes, folder) as environment:
        address = f"launch.ray_address={(folder / 'head').read_text()}"
        run = bench.start(name, *TWO, address, *settings, environment=environment, around=nodes[0].command)
        try:
            run.reach(AT)
            yield nodes, run
        finally:
            if run.process.poll() is None:
                run.process.kill()


def node_killed(bench: Bench, truth: dict[int, float]) -> Outcome:
    """Kill every process of the second node.  It does not come back: the run continues on the first one alone."""
    with two_nodes(bench, "node_killed", "launch.recovery.min_nodes=1", "launch.recovery.node_wait_seconds=3") as (
        nodes,
        run,
    ):
        at = time.time()
        pids = subprocess.run(["ip", "netns", "pids", nodes[1].namespace], capture_output=True, text=True, check=True)
        for pid in pids.stdout.split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        expect(run)
        outcome = Outcome.of(run, at, truth)
        if run.records()[-1].layout["data"] != 1:
            raise AssertionError("it did not go on with fewer nodes")
        return outcome


def network_cut(bench: Bench, truth: dict[int, float]) -> Outcome:
    """Cut for a minute: Ray gives up the node.  Then it comes back and is used again."""
    with two_nodes(bench, "network_cut", "launch.recovery.retries=10") as (nodes, run):
        at = time.time()
        nodes[1].cable("down")
        wait_for(lambda: run.records()[0].end, "the end of the attempt")
        time.sleep(max(0.0, at + 60 - time.time()))
        nodes[1].cable("up")
        expect(run)
        return Outcome.of(run, at, truth)


def network_cut_briefly(bench: Bench, truth: dict[int, float]) -> Outcome:
    """Cut for five seconds: the connections survive, and nothing is restarted."""
    with two_nodes(bench, "network_cut_briefly") as (nodes, run):
        at = time.time()
        nodes[1].cable("down")
        time.sleep(5)
        nodes[1].cable("up")
        expect(run)
        outcome = Outcome.of(run, at, truth)
        after = [event for event in run.events(StepEvent) if event.time > at + 5]
        outcome.seconds = after[0].time - at
        return outcome


OVER_TWO_NODES: dict[str, tuple[str, Scenario]] = {
    "node_killed": ("kill -9 of a whole node, `launch.recovery.min_nodes=1`", node_killed),
    "network_cut_briefly": ("network between nodes cut for 5 s", network_cut_briefly),
    "network_cut": ("network between nodes cut for 60 s, then healed", network_cut),
}
