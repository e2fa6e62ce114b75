"""One rank of a run: `python -m brt_dist.worker RUN`, started by brt's launcher, torchrun or Slurm alike.

Takes its place from the environment as torchrun sets it (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT),
reads RUN/config.yaml, goes on from the newest checkpoint of the run, and ends with an :class:`ExitCode`.  When it
fails it leaves RUN/attempts/NNN/rank_RRR.error.json.
"""

import argparse
import errno
import faulthandler
import json
import os
import signal
import socket
import sys
import time
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path

from brt_dist.errors import BrtError, ExitCode, PlatformError
from brt_dist.files import write_atomic
from brt_dist.run_directory import RunDirectory

# said by Megatron on every rank: kernels that we do not use, a setting that `device.choose` makes where it matters
_NOTICES = (
    "Transformer Engine and Apex are not installed",
    "When using async grad allreduce",
    "Warning: tp_group is None",
)

# What gloo, NCCL and torch say when another rank is gone, or did not come.
_SAID = (
    (ExitCode.HUNG, ("Timed out waiting", "Watchdog caught collective operation timeout", "wait timeout after")),
    (
        ExitCode.LOST_NODE,
        (
            "Connection closed by peer",
            "Connection reset by peer",
            "Connection refused",
            "Broken pipe",
            "Socket closed",
            "remote process exited or there was a network error",
            "failed to recv, got 0 bytes",
        ),
    ),
)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m brt_dist.worker", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("run", type=Path, metavar="RUN", help="run directory; holds config.yaml")
    parser.add_argument("--attempt", type=int, default=1, help="number of this start of the run's processes")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="in place of what config.yaml says")
    options = parser.parse_intermixed_args(arguments)
    # Asked for by the supervisor when the run hangs; goes to the log of the rank.
    faulthandler.register(signal.SIGUSR2, all_threads=True)
    try:
        return int(_run(options.run, options.attempt, options.settings))
    except KeyboardInterrupt:
        return int(ExitCode.INTERRUPTED)
    except BaseException as error:
        code = _exit_code(error)
        _leave_error(options.run, options.attempt, error, code)
        if isinstance(error, BrtError):
            print(f"error: {error}", file=sys.stderr)
        else:
            traceback.print_exc()
        return int(code)


def _run(run: Path, attempt: int, settings: Sequence[str] = ()) -> ExitCode:
    for notice in _NOTICES:
        warnings.filterwarnings("ignore", message=notice)
    from brt_dist.config.loading import load
    from brt_dist.config.rules import check

    directory = RunDirectory(run)
    config = load(directory.config, settings).config
    check(config)
    rank, local_rank = _number("RANK"), _number("LOCAL_RANK")

    from brt_dist.parallel.device import choose

    device = choose(config.run.device, local_rank)  # before the imports below: DeepSpeed asks at its import

    from brt_dist.data.facts import facts_of
    from brt_dist.data.open import open_training, open_validation
    from brt_dist.events import EndEvent, EventLog
    from brt_dist.parallel.layout import Layout, finalize, initialize
    from brt_dist.training.build import build_trainer
    from brt_dist.training.hooks.heartbeat import Heartbeat
    from brt_dist.training.stopping import StopRequest

    stop = StopRequest()
    stop.listen()
    heartbeat = Heartbeat(directory.attempt(attempt) if rank == 0 else None)
    train, validation = open_training(config.data, _tell), open_validation(config.data, _tell)
    check(config, facts_of(train), facts_of(validation) if validation else None)
    model = config.model.model_copy(update={"vocab_size": train.vocab_size})
    config = config.model_copy(update={"model": model})
    layout = Layout.of(config, rank)
    initialize(layout, device, config.launch.start_timeout_seconds)
    events = EventLog(run, attempt, enabled=rank == 0)
    try:
        trainer = build_trainer(config, run, layout, device, events, train, validation, stop, heartbeat)
        code = trainer.run()
        events.write(EndEvent(status=code.name.lower(), exit_code=int(code)))
        trainer.close()
        finalize()  # not after an error: the other ranks may wait in a collective that never comes
        return code
    except BaseException as error:
        code = _exit_code(error)
        events.write(EndEvent(status=code.name.lower(), exit_code=int(code)))
        raise
    finally:
        events.close()


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


def _exit_code(error: BaseException) -> ExitCode:
    if isinstance(error, BrtError):
        return error.exit_code
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return ExitCode.OUT_OF_MEMORY
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ExitCode.ENVIRONMENT
    return next((code for code, words in _SAID if any(word in str(error) for word in words)), ExitCode.INTERNAL)


def _leave_error(run: Path, attempt: int, error: BaseException, code: ExitCode) -> None:
    """For the supervisor, which shows the first error of the first rank that failed."""
    value = os.environ.get("RANK", "0")
    rank = int(value) if value.isdigit() else 0
    report = {
        "rank": rank,
        "host": socket.gethostname(),
        "time": time.time(),
        "type": type(error).__name__,
        "message": str(error),
        "exit_code": int(code),
        "traceback": "" if isinstance(error, BrtError) else "".join(traceback.format_exception(error)),
    }
    try:
        path = RunDirectory(run).attempt(attempt).failure(rank)
        write_atomic(path, json.dumps(report, indent=2) + "\n")
    except OSError as problem:
        print(f"cannot write the error report: {problem}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
