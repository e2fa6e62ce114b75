"""The position of the streams of a run at any past or future step, from the files of its run directory."""

from dataclasses import dataclass
from pathlib import Path

from brt_dist.checkpoint.manifest import Manifest
from brt_dist.checkpoint.places import answering, find_place
from brt_dist.config.loading import load
from brt_dist.config.schema import Config
from brt_dist.data.cursor import Cursor
from brt_dist.data.dataset import Dataset
from brt_dist.data.mixture import Mixture
from brt_dist.data.open import open_training, training_schedule
from brt_dist.data.stream_schedule import StreamSchedule
from brt_dist.errors import BrtError, CheckpointError, DataError
from brt_dist.event_log import events_of
from brt_dist.events import AttemptEvent
from brt_dist.run_directory import RunDirectory


@dataclass(frozen=True)
class Position:
    """The training data of a run, its stream schedule, and the cursor before a step.  Close the dataset when done."""

    dataset: Dataset | Mixture
    schedule: StreamSchedule
    cursor: Cursor


def position_of(run: Path, step: int) -> Position:
    """The position of the streams of `run` after `step` steps.

    Starts from the newest checkpoint at or before the step, or from the beginning, and follows the stream schedule
    with the number of streams of each attempt.

    Raises:
        ConfigError: the folder holds no run.
        DataError: the data of the run changed, and no checkpoint since then is old enough.
    """
    config = load(RunDirectory.existing(run).config).config
    dataset = open_training(config.data)
    try:
        streams = _streams(run, config)
        at, cursor = _newest(run, config, dataset, step)
        schedule = training_schedule(config, dataset, cursor.streams if cursor else streams[0][1])
        cursor = cursor or schedule.start()
        for begin, number in streams:
            if at <= begin <= step and number != schedule.streams:
                cursor = schedule.skip(cursor, begin - at).resized(number)
                schedule, at = schedule.resized(number), begin
        return Position(dataset, schedule, schedule.skip(cursor, step - at))
    except BaseException:
        dataset.close()
        raise


def _streams(run: Path, config: Config) -> list[tuple[int, int]]:
    """(first step, streams) of each attempt, except those that a later attempt replaced from an earlier step."""
    found: list[tuple[int, int]] = []
    for event in events_of(run, AttemptEvent):
        if (number := event.layout.streams) is not None:
            found = [*(item for item in found if item[0] < event.start_step), (event.start_step, number)]
    return found or [(0, config.data.streams)]


def _newest(run: Path, config: Config, dataset: Dataset | Mixture, step: int) -> tuple[int, Cursor | None]:
    """Step and cursor of the newest checkpoint at or before `step`; (0, None) if there is none."""
    try:
        place = find_place(str(run))
        names = place.names()
    except CheckpointError:
        return 0, None
    changed = False
    with answering(place.storage):
        for name in reversed(names):
            try:
                manifest = Manifest.parse(place.storage.manifest(name), name)
            except BrtError:
                continue  # damaged; an older one will do
            changed |= manifest.dataset != dataset.digest
            if manifest.step <= step and manifest.dataset == dataset.digest:
                return manifest.step, Cursor.from_json(manifest.cursor)
    if changed:
        raise DataError(
            f"{run}: the data of the run changed, and no checkpoint has the position of the streams at step {step}"
        )
    return 0, None
