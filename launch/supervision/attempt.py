"""One attempt in its own process: `python -m launch.supervision.attempt REQUEST`, started by `attempts.py`.

Only this process of the launcher connects to Ray, because Ray may kill a process connected to it (when its head is
lost, for example); the next attempt then starts without it.  REQUEST is JSON; the answer is one line of JSON on
standard output.  Messages for people go to standard error.
"""

import json
import os
import sys
import time
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from brt_dist.config.elastic import on_fewer_nodes
from brt_dist.config.loading import load
from brt_dist.config.schema import Config
from brt_dist.errors import BrtError, ExitCode, LaunchError, PlatformError
from brt_dist.parallel.device_choice import DeviceChoice
from brt_dist.run_directory import RunDirectory
from launch.run.attempt_record import read_attempts
from launch.run.facts import attempt_facts
from launch.supervision.hang import HangWatch
from launch.supervision.head import HeadWatch
from launch.supervision.signals import StopRequests
from launch.supervision.supervisor import Patience, Supervisor
from launch.supervision.verdict import Verdict
from launch.views.progress import ProgressLine
from pipelines.console import console

_LOOK_SECONDS = 1.0
_RANKS_SECONDS, _RANKS_SECONDS_PER_NODE = 0.2, 0.002  # between checks of the ranks, each of which queries every node
_PROBE_SECONDS = 20.0
_TOGETHER_SECONDS = 1.0  # one request may arrive several times: from the launcher, from each reaper, and from outside


@dataclass(frozen=True)
class AttemptRequest:
    """What the launcher asks of an attempt.

    Attributes:
        run: its directory, with config.yaml.
        worker: command of a rank; `RUN --attempt N` is appended.
        ray_address: cluster to join; None: none, or one on this machine (see `needs_ray`); `local`: the latter.
        again: an earlier attempt failed, so nodes may be missing.
    """

    run: str
    worker: tuple[str, ...]
    ray_address: str | None
    again: bool

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def main(request: AttemptRequest) -> Verdict:
    """Run one attempt.

    Raises:
        BrtError: the attempt cannot be started.
    """
    from launch.nodes.gang import Gang
    from launch.nodes.local_agents import LocalAgents, local_device, needs_ray
    from pipelines.cluster import ray_cluster

    screen = console()

    def tell(text: str) -> None:
        screen.print(text, soft_wrap=True)

    run = Path(request.run)
    wanted = load(RunDirectory(run).config).config
    with_ray = needs_ray(wanted, request.ray_address)
    with StopRequests(_TOGETHER_SECONDS) as stop, ray_cluster(request.ray_address) if with_ray else nullcontext():
        config = _for_remaining_nodes(wanted, tell) if request.again else wanted
        with Gang(config) if with_ray else Gang(config, local_device(config), LocalAgents) as gang:
            stop.install()  # Ray has replaced the handlers
            tell(str(gang.device))
            _refuse_other_device(run, config, gang.device)
            if config.launch.preflight:
                _preflight(gang, config, tell)
            progress = ProgressLine(run, config.run, screen)
            parallel, head = config.parallel, _head() if with_ray else None
            settings = _differences(wanted, config, gang.device)
            supervisor = Supervisor(
                run,
                gang,
                parallel.world_size,
                lambda attempt: (*request.worker, str(run), "--attempt", str(attempt), *settings),
                stop,
                patience=Patience(look=max(_RANKS_SECONDS, _RANKS_SECONDS_PER_NODE * config.launch.nodes)),
                hang=HangWatch.of(config),
                head=head,
                facts={
                    **attempt_facts(),
                    "nodes": [node.host for node in gang.nodes],
                    "device": gang.device.kind,
                    "layout": {"tensor": parallel.tensor, "pipeline": parallel.pipeline, "data": parallel.data},
                },
                on_look=progress.update,
                tell=tell,
            )
            stop.counting = True
            try:
                verdict = supervisor.run()
            finally:
                progress.update()
                progress.close()
            if head is not None and head.is_gone():
                _answer(verdict)
                os._exit(0)  # every call to Ray would block on the head
            return verdict


def _preflight(gang: Any, config: Config, tell: Any) -> None:
    from launch.doctor.examine import line, preflight, refuse

    found = preflight(gang, config, config.run.directory)
    refuse(found)
    for finding in found:
        if finding.status == "warning":
            tell(f"warning: {line(finding)}")


def _refuse_other_device(run: Path, config: Config, device: DeviceChoice) -> None:
    """Refuse to continue on CPUs because GPUs are gone.

    Raises:
        PlatformError: run.device=auto means CPUs now, but meant GPUs in an earlier attempt.
    """
    earlier = {record.device for record in read_attempts(run)}
    if config.run.device == "auto" and device.kind == "cpu" and "cuda" in earlier:
        raise PlatformError(
            f"run.device=auto: this run has trained on GPUs but would now train on CPUs, because {device.reason}; "
            "nearest: run.device=cpu, if that is what you want"
        )


def _for_remaining_nodes(config: Config, tell: Any) -> Config:
    """The config for the nodes that are left, if the run may continue on fewer."""
    nodes, recovery = config.launch.nodes, config.launch.recovery
    if recovery.min_nodes is None or nodes == 1:
        return config
    deadline = time.monotonic() + recovery.node_wait_seconds
    while (there := _nodes()) < nodes and time.monotonic() < deadline:
        time.sleep(_LOOK_SECONDS)
    if there >= nodes:
        return config
    smaller = on_fewer_nodes(config, there) if there >= recovery.min_nodes else None
    if smaller is None:
        raise LaunchError(
            f"{there} of {nodes} nodes are left after {recovery.node_wait_seconds:g} s, and "
            f"launch.recovery.min_nodes={recovery.min_nodes}"
        )
    layout = f"parallel.data={smaller.parallel.data} on launch.nodes={smaller.launch.nodes}"
    if smaller.parallel.uneven_streams:
        layout += ", not equally many streams on each rank"
    tell(f"{there} of {nodes} nodes are left: continuing with {layout}")
    return smaller


def _nodes() -> int:
    """The number of nodes that answer; Ray itself takes half a minute to notice a lost node."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    probe = ray.remote(num_cpus=0, max_retries=0)(_present)
    known = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    answers = [
        probe.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote() for node in known
    ]
    ready, _ = ray.wait(answers, num_returns=len(answers), timeout=_PROBE_SECONDS)
    count = 0
    for answer in ready:
        with suppress(ray.exceptions.RayError):
            ray.get(answer)
            count += 1
    return count


def _present() -> bool:
    return True


def _head() -> HeadWatch:
    import ray

    return HeadWatch(ray.get_runtime_context().gcs_address)


def _differences(wanted: Config, now: Config, device: DeviceChoice) -> list[str]:
    """Settings that turn the config.yaml of the run into `now` on `device`."""
    settings: list[tuple[str, Any, Any]] = [
        ("parallel.data", wanted.parallel.data, now.parallel.data),
        ("parallel.uneven_streams", wanted.parallel.uneven_streams, now.parallel.uneven_streams),
        ("launch.nodes", wanted.launch.nodes, now.launch.nodes),
        ("run.device", wanted.run.device, device.kind),
    ]
    return [f"{key}={str(new).lower() if isinstance(new, bool) else new}" for key, old, new in settings if old != new]


def _answer(verdict: Verdict) -> None:
    print(json.dumps({"verdict": verdict.to_json()}), flush=True)


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    try:
        _answer(main(AttemptRequest(given["run"], tuple(given["worker"]), given["ray_address"], given["again"])))
    except KeyboardInterrupt:
        _answer(Verdict(ExitCode.INTERRUPTED, "stopped before training started"))
    except BrtError as error:
        print(json.dumps({"error": str(error), "exit_code": int(error.exit_code)}), flush=True)
