"""Builds the trainer of a run, with its hooks in order."""

from collections.abc import Mapping
from pathlib import Path

from brt_dist.checkpoint.open_storage import open_storage
from brt_dist.checkpoint.store import CheckpointStore
from brt_dist.config.schema import Config
from brt_dist.data.dataset import Dataset
from brt_dist.data.mixture import Mixture
from brt_dist.data.open import training_schedule
from brt_dist.event_log import EventLog
from brt_dist.events import MessageEvent
from brt_dist.parallel.device import Device
from brt_dist.parallel.engine import Engine, build_engine
from brt_dist.parallel.layout import Layout
from brt_dist.run_directory import RunDirectory
from brt_dist.starting import Starting
from brt_dist.training.adjustments import Adjustments
from brt_dist.training.hooks.base import Hook
from brt_dist.training.hooks.checkpoints import Checkpoints
from brt_dist.training.hooks.collective_timeout import CollectiveTimeout
from brt_dist.training.hooks.evaluation import Evaluation
from brt_dist.training.hooks.heartbeat import Heartbeat
from brt_dist.training.hooks.held_memory import HeldMemory
from brt_dist.training.hooks.memory_statistics import MemoryStatistics
from brt_dist.training.hooks.number_guard import NumberGuard
from brt_dist.training.hooks.replica_guard import ReplicaGuard
from brt_dist.training.hooks.samples import Samples
from brt_dist.training.hooks.start_times import StartTimes
from brt_dist.training.hooks.step_metrics import StepMetrics
from brt_dist.training.hooks.step_parts import StepParts
from brt_dist.training.hooks.stragglers import Stragglers
from brt_dist.training.loop import Trainer
from brt_dist.training.stopping import StopFlag


def build_trainer(
    config: Config,
    run: Path,
    layout: Layout,
    device: Device,
    events: EventLog,
    train: Dataset | Mixture,
    validation: Dataset | None,
    stop: StopFlag,
    heartbeat: Heartbeat | None = None,
    starting: Starting | None = None,
) -> Trainer:
    """Build the trainer of one attempt, on one rank.  Collective.

    Args:
        config: resolved, with `model.vocab_size` set.
        run: the run directory.
        layout: of this rank.
        device: of this rank.
        events: the event log of the attempt.
        train: the training data.
        validation: the held-out data; None: evaluate on the training data only.
        stop: checked once per step.
        heartbeat: of rank 0; None on the other ranks.
        starting: the parts of this rank's start so far; None: do not report their times.

    Raises:
        ConfigError: the adjustments of the run cannot be read.
        PlatformError: another run saves checkpoints to the same place.
    """

    def report(message: str) -> None:
        print(message, flush=True)
        events.write(MessageEvent(message=message))

    adjustments = Adjustments.load(run)
    schedule = training_schedule(config, train)
    engine = build_engine(config, layout, device, blank=True)  # `resume` sets the weights
    storage = open_storage(config.run.checkpoints or RunDirectory(run).checkpoints)
    store = CheckpointStore(storage, config, layout, train.digest, report, train.tokenizer_sha256)
    datasets: dict[str, Dataset | Mixture] = {}
    if validation is None or config.run.evaluate_training:
        datasets["train"] = train
    if validation is not None:
        datasets["validation"] = validation
    hooks = hooks_of_a_run(engine, store, events, datasets, heartbeat or Heartbeat(None), stop)
    if starting is not None:
        starting.begin("weights")
        hooks.insert(-3, StartTimes(starting, events.write))  # before what happens between steps
    return Trainer(
        engine,
        train,
        schedule,
        store,
        adjustments,
        stop,
        events,
        hooks=hooks,
        report=report,
        prefetch_steps=config.data.cache.ahead_steps if train.is_remote else 0,
    )


def hooks_of_a_run(
    engine: Engine,
    store: CheckpointStore,
    events: EventLog,
    datasets: Mapping[str, Dataset | Mixture],
    heartbeat: Heartbeat,
    stop: StopFlag,
) -> list[Hook]:
    """All hooks, in calling order.

    The number guard comes first, so that nothing is written about a step that it rejects.  Checkpoints come last,
    because they contain the results of the evaluation.
    """
    config, tell = engine.config, events.write
    return [
        NumberGuard(config.run.guards, tell),
        StepMetrics(config, engine.layout, engine.device, tell),
        StepParts(engine, tell),
        ReplicaGuard(engine, tell),
        Stragglers(config.run.guards, engine.device, tell),
        MemoryStatistics(engine, tell),
        HeldMemory(engine, tell),
        CollectiveTimeout(config.run.guards.collective_seconds),
        heartbeat,
        Evaluation(engine, datasets, tell, heartbeat, stop),
        Samples(engine, list(datasets.values())[-1], tell, heartbeat, stop),
        Checkpoints(store, engine, tell, heartbeat),
    ]
