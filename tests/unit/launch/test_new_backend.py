"""A backend is one file and one line of a table: a new one is used here by `brt` without any other change."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.datasets import make_dataset

# A spool folder in place of a scheduler: a job is a file, and its name is the folder's next number.
SPOOL = '''
from collections.abc import Iterator
from pathlib import Path

from pydantic import Field

from brt_dist.config.section import Section
from launch.backends.base import Backend
from launch.backends.job import Job
from launch.run.submission import Submission


class SpoolConfig(Section):
    """A folder of jobs."""

    folder: Path | None = Field(None, description="where jobs are put")


class SpoolBackend(Backend):
    section = SpoolConfig
    shares_folders = True

    @classmethod
    def broken_rules(cls, config):
        if config.launch.of(SpoolConfig).folder is None:
            yield "launch.backend=spool needs launch.spool.folder"

    def render(self, job: Job) -> str:
        return f"train {job.run}\\n"

    def submit(self, job: Job) -> Submission:
        folder = job.config.launch.of(SpoolConfig).folder
        name = f"job-{len(list(folder.iterdir()))}"
        (folder / name).write_text(self.render(job))
        return job.submitted(name, folder=str(folder))

    def state(self, submission: Submission):
        return "queued" if self._file(submission).exists() else "ended"

    def log(self, submission: Submission, run: Path) -> Iterator[str]:
        yield f"nothing yet from {submission.job}\\n"

    def stop(self, submission: Submission, run: Path) -> None:
        self._file(submission).unlink()

    def _file(self, submission: Submission) -> Path:
        return Path(submission.details["folder"]) / submission.job
'''
# What the line in brt_dist/kinds.py does.
BRT = """
import brt_dist.kinds as kinds
kinds.BACKENDS = kinds.Registry("backend", {**kinds.BACKENDS._places, "spool": "spool:SpoolBackend"})
from launch.cli import main
main()
"""


def brt(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    (folder / "spool.py").write_text(SPOOL)
    path = os.pathsep.join([str(folder), str(Path(__file__).parents[3])])
    environment = {**os.environ, "PYTHONPATH": path}
    command = [sys.executable, "-c", BRT, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)


def test_a_new_backend_is_submitted_to_asked_and_stopped(tmp_path: Path) -> None:
    make_dataset(tmp_path, ["a text"] * 8)
    jobs, run = tmp_path / "jobs", tmp_path / "run"
    jobs.mkdir()
    config = {
        "model": {"layers": 1, "width": 8, "heads": 1, "head_dim": 8, "mlp_width": 8, "window": 4, "states": 4}
        | {"recurrent_layers": [0]},
        "data": {"dataset": str(tmp_path / "dataset"), "segment": 4, "streams": 2},
        "optimizer": {"warmup_steps": 0},
        "run": {"directory": str(run), "steps": 5, "tracking": {"enabled": False}},
        "launch": {"backend": "spool"},
    }
    file = tmp_path / "config.yaml"
    file.write_text(json.dumps(config))

    refused = brt(tmp_path, "submit", str(file))
    assert refused.returncode == 10 and "launch.backend=spool needs launch.spool.folder" in refused.stderr
    wrong = brt(tmp_path, "submit", str(file), "launch.spool.folders=x")
    assert wrong.returncode == 10 and "nearest: launch.spool.folder" in wrong.stderr

    given = brt(tmp_path, "submit", str(file), f"launch.spool.folder={jobs}", "--backend", "spool", "--json")
    assert given.returncode == 0, given.stderr
    assert json.loads(given.stdout)["submission"]["job"] == "job-0"
    assert (jobs / "job-0").read_text() == f"train {run}\n"
    found = json.loads(brt(tmp_path, "status", str(run), "--json").stdout)
    assert found["submission"]["state"] == "queued" and found["submission"]["backend"] == "spool"
    assert brt(tmp_path, "logs", str(run)).stdout == "nothing yet from job-0\n"
    assert "removed from the queue" in brt(tmp_path, "stop", str(run)).stdout
    assert not any(jobs.iterdir())
    assert "spool" in brt(tmp_path, "submit", "--help").stdout
