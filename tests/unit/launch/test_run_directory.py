"""The run directory: held by one run, resumed only by the same config."""

import subprocess
import sys
from pathlib import Path

import pytest

from brt_dist.config.loading import Resolved, load
from brt_dist.errors import ConfigError, ExitCode, PlatformError
from launch.run.claim import claimed
from launch.run.config_file import absolute, refuse_other_run, write_config


def resolved(tmp_path: Path, *overrides: str) -> Resolved:
    text = f"data: {{dataset: books}}\nrun: {{directory: {tmp_path / 'run'}, steps: 10}}\n"
    found = load(text, list(overrides))
    return Resolved(absolute(found.config), found.provenance)


def test_folders_become_absolute(tmp_path: Path) -> None:
    config = resolved(tmp_path, "data.validation=a/../held_out", "run.directory=r").config
    assert (config.data.dataset, config.data.validation) == (Path.cwd() / "books", Path.cwd() / "held_out")
    assert config.run.directory == Path.cwd() / "r"


def test_what_may_change_and_what_not(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with claimed(run) as known:
        assert not known
        write_config(run, resolved(tmp_path))
    with claimed(run) as known:
        assert known
    changes = [
        "run.steps=20",
        "run.checkpoint_every=5",
        "run.tracking.uri=http://h",
        "launch.nodes=2",
        "data.validation=v",
        "parallel.data=2",
    ]
    refuse_other_run(run, resolved(tmp_path, *changes).config)
    with pytest.raises(ConfigError) as error:
        refuse_other_run(run, resolved(tmp_path, *changes, "model.width=8", "run.seed=1").config)
    message = str(error.value)
    assert "model.width: 1024 in the run, 8 now (cannot change: the weights of the run belong" in message
    assert "run.seed: 0 in the run, 1 now" in message
    assert "steps" not in message and "nodes" not in message and "parallel" not in message
    refuse_other_run(run, resolved(tmp_path, "run.seed=1", 'run.allow=["run.seed"]').config)
    with pytest.raises(ConfigError, match=r"model\.width"):
        refuse_other_run(run, resolved(tmp_path, "model.width=8", 'run.allow=["model.width"]').config)


def test_the_config_with_a_password_is_the_owners_alone(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_config(run, resolved(tmp_path, "run.tracking.uri=http://u:hunter2@h"))
    assert (run / "config.yaml").stat().st_mode & 0o077 == 0
    assert load(run / "config.yaml").config.run.tracking.uri == "http://u:hunter2@h"


def test_one_launcher_at_a_time(tmp_path: Path) -> None:
    program = f"""
from pathlib import Path
from launch.run.claim import claimed
try:
    with claimed(Path({str(tmp_path / "run")!r})):
        print("taken")
except Exception as error:
    print(error)
"""

    def other() -> str:
        return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout

    with claimed(tmp_path / "run"):
        assert "in use by another `brt train`" in other()
    assert other() == "taken\n"


def test_other_peoples_folders_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(PlatformError) as error, claimed(tmp_path):
        pass
    assert "thesis.tex" in str(error.value) and f"run.directory={tmp_path / 'run'}" in str(error.value)
    assert error.value.exit_code == ExitCode.ENVIRONMENT
    with pytest.raises(PlatformError), claimed(tmp_path / "thesis.tex" / "run"):
        pass
