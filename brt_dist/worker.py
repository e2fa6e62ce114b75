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
from typing import TYPE_CHECKING, Any

from brt_dist.errors import BrtError, ExitCode, PlatformError
from brt_dist.event_log import EventLog
from brt_dist.events import EndEvent, MessageEvent
from brt_dist.failure import Failure, exit_code_of
from brt_dist.run_directory import RunDirectory

if TYPE_CHECKING:
    from brt_dist.config.schema import Config
    from brt_dist.parallel.device import Device
    from brt_dist.parallel.layout import Layout
    from brt_dist.starting import Starting
    from brt_dist.training.loop import Trainer


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
        if not sys.warnoptions:  # readers of the log need not see libraries' warnings; PYTHONWARNINGS shows them
            warnings.simplefilter("ignore")
        from brt_dist.starting import Starting

        starting = Starting(self._run.attempt(self._attempt) if os.environ.get("RANK") == "0" else None)
        from brt_dist.config.environment import for_ranks
        from brt_dist.config.loading import load
        from brt_dist.config.rules import check

        config = load(self._run.config, self._settings).config
        check(config)
        launch = config.launch  # the launcher has set most of them; torchrun has not
        os.environ.update(for_ranks(launch.default_environment, os.environ, launch.environment))
        rank, local_rank = _number("RANK"), _number("LOCAL_RANK")

        starting.begin("importing torch and Megatron")
        from brt_dist.parallel.deepspeed_internals import import_deepspeed
        from brt_dist.parallel.layout import Layout, meet
        from brt_dist.parallel.start import device_of_rank

        starting.begin("meeting the other ranks")
        layout = Layout.of(config, rank)
        store = meet(layout, config.launch.start_seconds)
        starting.begin("importing DeepSpeed")  # it picks its accelerator at import, so after the choice of the device
        device, choice = device_of_rank(config.run.device, layout, local_rank, store)
        import_deepspeed()
        return self._train(config, layout, device, str(choice), store, starting)

    def _train(
        self, config: "Config", layout: "Layout", device: "Device", choice: str, store: Any, starting: "Starting"
    ) -> ExitCode:
        """Train on `device` (`choice`: why this one) with the ranks that have joined at `store`."""
        from brt_dist.config.rules import check
        from brt_dist.data.facts import facts_of
        from brt_dist.data.open import open_training, open_validation
        from brt_dist.parallel.layout import finalize, initialize
        from brt_dist.training.build import build_trainer
        from brt_dist.training.hooks.heartbeat import Heartbeat
        from brt_dist.training.stopping import StopFlag

        stop, rank = StopFlag(), layout.rank
        stop.listen()
        heartbeat = Heartbeat(self._run.attempt(self._attempt) if rank == 0 else None)
        starting.begin("data")
        looks = _number("LOCAL_RANK") == 0  # checks every file; once per node is enough
        train, validation = open_training(config.data, _tell, looks), open_validation(config.data, _tell, looks)
        check(config, facts_of(train), facts_of(validation) if validation else None)
        config = config.model_copy(update={"model": config.model.with_tokens(train.vocab_size)})
        starting.begin("process groups")
        initialize(layout, device, config.launch.start_seconds, store)
        run = self._run.path
        events = EventLog(run, self._attempt, enabled=rank == 0)
        if rank == 0:
            _tell(choice)
            events.write(MessageEvent(message=choice))
        try:
            starting.begin("model and optimizer")
            trainer = build_trainer(config, run, layout, device, events, train, validation, stop, heartbeat, starting)
            self._trainer = trainer
            code = trainer.run()
            events.write(EndEvent(status=code.name.lower(), exit_code=int(code)))
            trainer.close()
            finalize()  # not after an error: the other ranks may wait in a collective that never completes
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
