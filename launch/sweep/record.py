"""SWEEP/sweep.json: the runs of a sweep, and their state, read from their own files."""

import json
import re
import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brt_dist.errors import ConfigError, ExitCode
from brt_dist.files import write_atomic
from brt_dist.reading import read_record
from launch.run.attempt_record import AttemptRecord, read_last_attempt
from launch.run.history import History
from launch.sweep.grid import Point
from pipelines.tables import table

if TYPE_CHECKING:
    from rich.table import Table

RECORD = "sweep.json"


@dataclass(frozen=True)
class _Record:
    """What sweep.json holds."""

    name: str
    identity: str
    runs: dict[str, dict[str, str]]


@dataclass
class Sweep:
    """A sweep.

    Attributes:
        folder: SWEEP; its runs are folders in it.
        name: for people.
        identity: finds the parent run in MLflow; starts with the name in plain letters.
        runs: settings of each run by the name of its folder, of all grids trained here.
    """

    folder: Path
    name: str
    identity: str
    runs: dict[str, dict[str, str]] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path, name: str) -> "Sweep":
        """The sweep in `folder`, or a new one."""
        try:
            return cls.read(folder)
        except FileNotFoundError:
            plain = re.sub(r"[^A-Za-z0-9_. -]", "_", name)
            return cls(folder, name, f"{plain}-{secrets.token_hex(6)}")

    @classmethod
    def read(cls, folder: Path) -> "Sweep":
        """Read the sweep in `folder`.

        Raises:
            FileNotFoundError: there is none.
            ConfigError: its record is damaged.
        """
        path = folder / RECORD
        try:
            record = read_record(path, _Record)
            return cls(folder, record.name, record.identity, record.runs)
        except FileNotFoundError:
            raise
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path} cannot be read ({error}); remove it to start the sweep from scratch") from None

    def add(self, points: Sequence[Point]) -> None:
        """Add the runs of a grid, and write the record."""
        self.runs |= {point.name: point.settings for point in points}
        record = {key: value for key, value in asdict(self).items() if key != "folder"}
        write_atomic(self.folder / RECORD, json.dumps(record, indent=2) + "\n")

    def results(self) -> list["Result"]:
        return [Result.of(self.folder / name, settings) for name, settings in self.runs.items()]


@dataclass(frozen=True)
class Result:
    """The state of a run of a sweep.

    Attributes:
        verdict: `finished`, ..., `running` or `not started`.
        bits_per_token: of the last evaluation with memory carried, on held-out data, else on training data.
        loss: of the last step, in nats.
    """

    run: Path
    settings: dict[str, str]
    verdict: str
    exit_code: int
    step: int
    bits_per_token: float | None
    loss: float | None

    @classmethod
    def of(cls, run: Path, settings: dict[str, str]) -> "Result":
        history = History.read(run)
        last = read_last_attempt(run) or AttemptRecord(0)
        found = {
            dataset: event.bits_per_token
            for (_, dataset, memory), event in sorted(history.evaluations.items())
            if memory == "carried"
        }
        step = history.latest_step()
        return cls(
            run,
            settings,
            "running" if last.is_running else last.verdict or "not started",
            int(ExitCode.INTERRUPTED if last.exit_code is None else last.exit_code),
            history.last_step,
            found.get("validation", found.get("train")),
            None if step is None else step.loss,
        )

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "run": str(self.run)}


def best(results: Sequence[Result]) -> Result | None:
    """The finished run with the lowest bits per token."""
    done = [result for result in results if result.verdict == "finished" and result.bits_per_token is not None]
    return min(done, key=lambda result: result.bits_per_token or 0.0, default=None)


def result_table(results: Sequence[Result]) -> "Table":
    """A table with a line per run, the best one marked."""
    keys = list(dict.fromkeys(key for result in results for key in result.settings))
    top = best(results)
    rows = [
        [
            *(result.settings.get(key, "-") for key in keys),
            result.verdict,
            str(result.step),
            "-" if result.loss is None else f"{result.loss:.4f}",
            ("-" if result.bits_per_token is None else f"{result.bits_per_token:.4f}")
            + ("  best" if result is top else ""),
        ]
        for result in results
    ]
    return table([*keys, "verdict", "step", "training loss (nats)", "held-out bits/token"], rows)
