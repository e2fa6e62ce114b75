"""Where a run is tracked does not depend on the folder or the shell that a later process starts in."""

from pathlib import Path

import pytest

from brt_dist.config.loading import load
from brt_dist.config.schema import TrackingConfig
from brt_dist.errors import ConfigError
from launch.run.config_file import absolute
from launch.run.tracking_place import settled

BASE = "data: {dataset: books}\nrun: {directory: a, steps: 10}\n"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("sqlite:///s.db", "sqlite:///{here}/s.db"),
        ("sqlite:////abs/s.db", "sqlite:////abs/s.db"),
        ("mlruns", "file://{here}/mlruns"),
        ("./my runs", "file://{here}/my%20runs"),
        ("file:///abs/mlruns", "file:///abs/mlruns"),
        ("file:mlruns", "file://{here}/mlruns"),
        ("http://server:5000", "http://server:5000"),
        ("postgresql+psycopg2://u:p@h/db", "postgresql+psycopg2://u:p@h/db"),
        ("databricks", "databricks"),
    ],
)
def test_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, expected: str) -> None:
    monkeypatch.chdir(tmp_path)
    found = settled(TrackingConfig(uri=given), {})
    assert found.uri == expected.format(here=str(tmp_path))
    assert settled(found, {}) == found


@pytest.mark.parametrize(("given", "near"), [("foo://x", ""), ("htp://x", "http://x"), ("sqllite:///a", "sqlite:///a")])
def test_what_can_never_work_is_refused_at_the_start(given: str, near: str) -> None:
    with pytest.raises(ConfigError, match="MLflow has no") as error:
        absolute(load([BASE], [f"run.tracking.uri={given}"]).config)
    assert near in str(error.value)
    with pytest.raises(ConfigError, match=r"run\.tracking\.experiment"):
        load([BASE], ['run.tracking.experiment=""'])


def test_variables_of_mlflow_count_where_the_config_is_silent() -> None:
    shell = {"MLFLOW_TRACKING_URI": "http://shell:1", "MLFLOW_EXPERIMENT_NAME": "from the shell"}
    silent = load([BASE]).config.run.tracking
    assert (settled(silent, shell).uri, settled(silent, shell).experiment) == ("http://shell:1", "from the shell")
    assert (settled(silent, {}).uri, settled(silent, {}).experiment) == (None, "brt")
    said = load([BASE], ["run.tracking.uri=http://config:2", "run.tracking.experiment=brt"]).config.run.tracking
    assert (settled(said, shell).uri, settled(said, shell).experiment) == ("http://config:2", "brt")
    off = load([BASE], ["run.tracking.enabled=false"]).config.run.tracking
    assert settled(off, shell) == off
