"""One rank of a run: `python -m brt_dist.worker RUN`, started by brt's launcher, torchrun or Slurm alike.

It reads torchrun's environment variables (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT) and RUN/config.yaml,
resumes from the newest checkpoint of the run, and exits with an :class:`ExitCode`.  If it fails, it writes
RUN/attempts/NNN/rank_RRR.error.json.
"""

import argparse
import faulthandler
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from brt_dist.errors import BrtError, ExitCode, PlatformError
from brt_dist.event_log import EventLog
from brt_dist.events import EndEvent, MessageEvent
from brt_dist.failure import Failure, exit_code_of
from brt_dist.run_directory import RunDirectory

if TYPE_CHECKING:
    from brt_dist.training.loop import Trainer

# Megatron prints these on every rank, about kernels that we do not use and a setting that `device.choose` makes
_NOTICES = (
    "Transformer Engine and Apex are not installed",
    "When using async grad allreduce",
    "Warning: tp_group is None",
)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m brt_dist.worker", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("run", type=Path, metavar="RUN", help="run directory; holds config.yaml")
    parser.add_argument("--attempt", type=int, default=1, help="number of this start of the run's processes")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="overrides of config.yaml")
    options = parser.parse_intermixed_args(arguments)
    # the supervisor asks for the stacks when the run hangs; they go to the log of the rank
    faulthandler.register(signal.SIGUSR2, all_threads=True)
    worker = Worker(options.run, options.attempt, options.settings)
    try:
        return int(worker.run())
    except KeyboardInterrupt:
        return int(ExitCode.INTERRUPTED)
    except BaseException as error:
        if isinstance(error, BrtError):
            print(f"error: {error}", file=sys.stderr)
        else:
            traceback.print_exc()
        return int(worker.leave_failure(error).code)


class Worker:
    """One rank of an attempt, from the config to the exit code.

    Args:
        run: the run directory.
        attempt: number of this start of the run's processes.
        settings: overrides of what config.yaml says.
    """

    def __init__(self, run: Path, attempt: int, settings: Sequence[str] = ()) -> None:
        self._run, self._attempt, self._settings = RunDirectory(run), attempt, settings
        self._trainer: Trainer | None = None

    def run(self) -> ExitCode:
        """Train to the end, or until asked to stop."""
        for notice in _NOTICES:
            warnings.filterwarnings("ignore", message=notice)
        from brt_dist.config.loading import load
        from brt_dist.config.rules import check

        config = load(self._run.config, self._settings).config
        check(config)
        os.environ.update(config.launch.environment)  # the launcher has set them; torchrun has not
        rank, local_rank = _number("RANK"), _number("LOCAL_RANK")

        from brt_dist.parallel.layout import Layout, finalize, initialize, meet
        from brt_dist.parallel.start import device_of_rank

        layout, seconds = Layout.of(config, rank), config.launch.start_seconds
        store = meet(layout, seconds)
        # before the imports below: DeepSpeed picks its accelerator at import
        device, choice = device_of_rank(config.run.device, layout, local_rank, store)

        _import_deepspeed_without_mlflow()
        from brt_dist.data.facts import facts_of
        from brt_dist.data.open import open_training, open_validation
        from brt_dist.training.build import build_trainer
        from brt_dist.training.hooks.heartbeat import Heartbeat
        from brt_dist.training.stopping import StopFlag

        stop = StopFlag()
        stop.listen()
        heartbeat = Heartbeat(self._run.attempt(self._attempt) if rank == 0 else None)
        looks = local_rank == 0  # at every file; once per node is enough
        train, validation = open_training(config.data, _tell, looks), open_validation(config.data, _tell, looks)
        check(config, facts_of(train), facts_of(validation) if validation else None)
        config = config.model_copy(update={"model": config.model.with_tokens(train.vocab_size)})
        initialize(layout, device, seconds, store)
        run = self._run.path
        events = EventLog(run, self._attempt, enabled=rank == 0)
        if rank == 0:
            _tell(str(choice))
            events.write(MessageEvent(message=str(choice)))
        try:
            trainer = build_trainer(config, run, layout, device, events, train, validation, stop, heartbeat)
            self._trainer = trainer
            code = trainer.run()
            events.write(EndEvent(status=code.name.lower(), exit_code=int(code)))
            trainer.close()
            finalize()  # not after an error: the other ranks may wait in a collective that never comes
            return code
        except BaseException as error:
            code = exit_code_of(error)
            events.write(EndEvent(status=code.name.lower(), exit_code=int(code)))
            raise
        finally:
            events.close()

    def leave_failure(self, error: BaseException) -> Failure:
        """Record why this rank fails, for the supervisor, which shows the first failure of an attempt."""
        rank = os.environ.get("RANK", "0")
        step = None if self._trainer is None else self._trainer.state.step + 1
        failure = Failure.of(error, int(rank) if rank.isdigit() else 0, step)
        try:
            failure.write(self._run.attempt(self._attempt).failure(failure.rank or 0))
        except OSError as problem:
            print(f"cannot record the failure: {problem}", file=sys.stderr)
        return failure


def _import_deepspeed_without_mlflow() -> None:
    """Import DeepSpeed, whose autotuner (not used here) imports MLflow if it can: a second of each rank's start."""
    absent = "mlflow" not in sys.modules
    if absent:
        sys.modules["mlflow"] = None  # type: ignore[assignment]  # an import of it fails, as if not installed
    try:
        import deepspeed  # noqa: F401
    finally:
        if absent:
            del sys.modules["mlflow"]


def _tell(message: str) -> None:
    print(message, flush=True)


def _number(name: str) -> int:
    value = os.environ.get(name, "")
    if not value.isdigit():
        raise PlatformError(
            f"the environment variable {name} is {value!r}; start ranks with `brt train`, or with "
            "`torchrun --nproc-per-node N -m brt_dist.worker RUN`"
        )
    return int(value)


if __name__ == "__main__":
    sys.exit(main())
