"""What MLflow will never take does not stop the rest, on a real store."""

from pathlib import Path

import pytest

from brt_dist.config.loading import load
from launch.tracking.client import connect
from launch.tracking.mlflow_run import MlflowRun
from launch.tracking.rows import Row
from launch.tracking.state import SyncState

REFUSED = "loss//twice"  # MLflow takes no name with an empty part


@pytest.fixture
def store(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/mlflow.db"


@pytest.fixture
def run(store: str, tmp_path: Path) -> MlflowRun:
    config = load([], ["data.dataset=none", f"run.directory={tmp_path / 'run'}", "run.steps=3000"]).config
    return MlflowRun(store, config, tmp_path / "run", SyncState("store"))


def rows(names: list[str]) -> list[Row]:
    return [Row(name, float(place), place, 1000) for place, name in enumerate(names)]


def test_a_metric_that_mlflow_never_takes_is_left_out(
    run: MlflowRun, store: str, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [REFUSED if place % 5 == 2 else f"m/{place}" for place in range(23)]
    run.log(rows(names))
    run.log(rows(names))
    metrics = connect(store).get_run(run.id).data.metrics
    assert metrics == {name: float(place) for place, name in enumerate(names) if name != REFUSED}
    said = [line for line in capsys.readouterr().err.splitlines() if "does not take" in line]
    assert len(said) == 1 and said[0].startswith(f"MLflow does not take metric '{REFUSED}'; it is left out: ")


def test_a_deleted_run_takes_nothing_and_loses_nothing(run: MlflowRun, store: str) -> None:
    from mlflow.exceptions import MlflowException

    connect(store).delete_run(run.id)
    with pytest.raises(MlflowException):
        run.log(rows(["m/1", "m/2"]))
    connect(store).restore_run(run.id)
    run.log(rows(["m/1", "m/2"]))
    assert connect(store).get_run(run.id).data.metrics == {"m/1": 0.0, "m/2": 1.0}
