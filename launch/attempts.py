"""All attempts of one `brt train`: each on the nodes that are there, until the run is done or nothing helps."""

import json
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brt_dist.config.elastic import on_fewer_nodes
from brt_dist.config.schema import Config
from brt_dist.errors import BrtError, ExitCode, LaunchError, PlatformError
from brt_dist.files import write_atomic
from brt_dist.training.adjustments import Adjustments
from launch.events import History, read_events
from launch.facts import attempt_facts
from launch.hang import HangWatch
from launch.progress import Progress
from launch.recovery import Decision, Recovery
from launch.signals import StopRequests
from launch.supervisor import Supervisor, attempt_folder, attempts, next_attempt, read_attempt
from launch.verdict import Verdict

if TYPE_CHECKING:
    from launch.gang import Gang

_LOOK_SECONDS = 1.0
_STOPPED = Verdict(ExitCode.INTERRUPTED, "stopped between two attempts; the last checkpoint counts")


class Attempts:
    """Runs attempts of a run directory whose config.yaml is written.

    worker: command of a rank, to which `RUN --attempt N` is added.  ray_address: cluster to join; none: one of our own.
    before: called with the nodes of each attempt before its ranks start, to check them.  begun: called once the first
    ranks may start.
    """

    def __init__(
        self,
        config: Config,
        worker: tuple[str, ...],
        ray_address: str | None,
        stop: StopRequests,
        progress: Callable[[Config], Progress],
        tell: Callable[[str], None],
        before: Callable[["Gang", Config], None],
        begun: Callable[[], None],
    ) -> None:
        self._config, self._worker, self._address, self._stop = config, worker, ray_address, stop
        self._progress, self._tell, self._before, self._begun = progress, tell, before, begun
        self._run: Path = config.run.directory
        self._recovery = Recovery(config.launch.recovery, _saved(self._history()))
        self._ray: ExitStack | None = None

    def run(self) -> Verdict:
        """Attempts until one ends well or for good.  BrtError: the first could not be started."""
        first = next_attempt(self._run)
        try:
            while True:
                number = next_attempt(self._run)
                try:
                    verdict = self._attempt(lost=number > first)
                except KeyboardInterrupt:
                    if number == first:
                        raise
                    return _STOPPED
                except (LaunchError, PlatformError) as error:
                    if number == first:
                        raise
                    verdict = Verdict(error.exit_code, str(error))
                decision = self._decide(verdict, number)
                if decision.action == "stop":
                    return verdict
                self._tell(f"attempt {number} failed: {verdict.reason}")
                self._tell(f"{decision.action} in {decision.pause:g} s: {decision.why}")
                if self._paused(decision.pause):
                    return _STOPPED
        finally:
            self._leave_ray()

    def _attempt(self, lost: bool) -> Verdict:
        """One attempt; lost: another one has failed, so nodes may be missing."""
        from launch.gang import Gang

        self._stop.counting = False  # no rank runs: whoever wants to stop need not wait
        self._join_ray()
        config = self._on_what_is_left() if lost else self._config
        with Gang(config) as gang:
            self._stop.install()  # Ray has put its own handlers in the way
            self._before(gang, config)
            progress = self._progress(config)
            parallel = config.parallel
            settings = _differences(self._config, config)
            supervisor = Supervisor(
                self._run,
                gang,
                parallel.world_size,
                lambda attempt: (*self._worker, str(self._run), "--attempt", str(attempt), *settings),
                self._stop,
                hang=HangWatch.of(config),
                facts={
                    **attempt_facts(),
                    "nodes": [node.host for node in gang.nodes],
                    "layout": {"tensor": parallel.tensor, "pipeline": parallel.pipeline, "data": parallel.data},
                },
                on_look=progress.update,
                tell=self._tell,
            )
            # Only now: the attempt is what the syncer reports on, and its start must not slow that of Ray.
            self._begun()
            self._stop.counting = True
            try:
                return supervisor.run()
            finally:
                progress.update()
                progress.close()

    def _decide(self, verdict: Verdict, number: int) -> Decision:
        events = read_events(self._run)
        history = History.of(events)
        diverged = [e["step"] for e in events if e["event"] == "diverged" and e.get("attempt") == number]
        decision = self._recovery.decide(
            verdict,
            saved=_saved(history),
            step=max(history.steps, default=0),
            diverged_at=diverged[-1] if diverged else None,
            adjustments=Adjustments.load(self._run),
        )
        if self._stop.count and decision.action != "stop":
            decision = Decision("stop", "it was asked to stop")
        if decision.adjustments is not None:
            decision.adjustments.save(self._run)
        self._record(number, verdict, decision)
        return decision

    def _record(self, number: int, verdict: Verdict, decision: Decision) -> None:
        """Add what was decided to attempt.json, which may not be there yet when no rank was started."""
        folder = attempt_folder(self._run, number)
        if number not in attempts(self._run):
            folder.mkdir(parents=True)
        now = time.time()
        record = {"attempt": number, "start": now, "end": now, "exit_codes": {}, **verdict.to_json()}
        record = {**record, **read_attempt(self._run, number), "decision": decision.to_json()}
        write_atomic(folder / "attempt.json", json.dumps(record, indent=2) + "\n")

    def _paused(self, seconds: float) -> bool:
        """Wait; true if the user wants to stop instead."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not self._stop.count:
            time.sleep(0.1)
        return self._stop.count > 0

    # ---- nodes ----------------------------------------------------------------------------------------------

    def _on_what_is_left(self) -> Config:
        """The config for the nodes that are there, when it may go on with fewer."""
        wanted, recovery = self._config.launch.nodes, self._config.launch.recovery
        if recovery.min_nodes is None or wanted == 1:
            return self._config
        deadline = time.monotonic() + recovery.node_wait_seconds
        while (there := _nodes()) < wanted and time.monotonic() < deadline and not self._stop.count:
            time.sleep(_LOOK_SECONDS)
        if there >= wanted:
            return self._config
        smaller = on_fewer_nodes(self._config, there) if there >= recovery.min_nodes else None
        if smaller is None:
            raise LaunchError(
                f"{there} of {wanted} nodes are left after {recovery.node_wait_seconds:g} s, and "
                f"launch.recovery.min_nodes={recovery.min_nodes}"
            )
        self._tell(
            f"{there} of {wanted} nodes are left: going on with parallel.data={smaller.parallel.data} "
            f"on {smaller.launch.nodes}"
        )
        return smaller

    def _join_ray(self) -> None:
        """Be connected to a Ray that answers."""
        from launch.backends.local import ray_cluster

        if self._ray is not None:
            try:
                _nodes()
                return
            except Exception as error:  # whatever Ray raises when its head is gone
                self._tell(f"Ray gives no answer ({type(error).__name__}); joining anew")
                self._leave_ray()
        stack = ExitStack()
        stack.enter_context(ray_cluster(self._address))
        self._ray = stack

    def _leave_ray(self) -> None:
        if self._ray is not None:
            stack, self._ray = self._ray, None
            try:
                stack.close()
            except BrtError:
                raise
            except Exception as error:  # a Ray that is gone cannot be left
                print(f"leaving Ray: {type(error).__name__}: {error}", file=sys.stderr)

    def _history(self) -> History:
        return History.of(read_events(self._run))


def _nodes() -> int:
    import ray

    return sum(bool(node["Alive"]) for node in ray.nodes())


def _saved(history: History) -> int:
    return max(history.checkpoints, default=0)


def _differences(wanted: Config, now: Config) -> list[str]:
    """Settings that make `now` of the config.yaml of the run."""
    settings: list[tuple[str, Any, Any]] = [
        ("parallel.data", wanted.parallel.data, now.parallel.data),
        ("launch.nodes", wanted.launch.nodes, now.launch.nodes),
    ]
    return [f"{key}={new}" for key, old, new in settings if old != new]
