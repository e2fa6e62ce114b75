"""A running Ray cluster, through the job submission API of its dashboard."""

import json
import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from brt_dist.config.section import Section
from brt_dist.errors import PlatformError
from launch.backends.base import Backend
from launch.backends.job import Job
from launch.run.submission import State, Submission
from pipelines.cluster import joining_environment, set_for_a_while

if TYPE_CHECKING:
    from brt_dist.config.schema import Config

_CONFIG = "brt.config.yaml"
_STATES: dict[str, State] = {"PENDING": "queued", "RUNNING": "running"}
_TAKEN_ALONG = ("*.py", "*.yaml", "*.toml", "*.json")


class RayConfig(Section):
    """A running Ray cluster, through its job submission API."""

    jobs_address: str | None = Field(None, description="URL of the cluster's dashboard, for example http://head:8265")
    token_file: Path | None = Field(
        None, description="file with the cluster's token; unset: RAY_AUTH_TOKEN_PATH, or ~/.ray/auth_token"
    )
    working_directory: Path | None = Field(
        None, description="folder with code to ship with the job; unset: brt_dist is installed on the cluster"
    )
    python: str = Field("python", min_length=1, description="Python interpreter on the cluster that has brt_dist")


class RayBackend(Backend):
    """The job is a submission id; `details` holds the address of the dashboard and the path of the token file."""

    section = RayConfig

    @classmethod
    def broken_rules(cls, config: "Config") -> Iterator[str]:
        address = config.launch.of(RayConfig).jobs_address
        if address is None:
            yield "launch.backend=ray needs launch.ray.jobs_address, the URL of its dashboard, such as http://head:8265"
        elif not re.match(r"https?://[^/\s@]+/?$", address):
            yield (
                f"launch.ray.jobs_address={address!r} must be a URL such as http://head:8265, without user and password"
            )

    @classmethod
    def broken_on_submit(cls, config: "Config") -> Iterator[str]:
        folder = config.launch.of(RayConfig).working_directory
        if folder is not None and not folder.is_dir():
            yield f"launch.ray.working_directory={folder}: no such folder"

    def render(self, job: Job) -> str:
        request = {"address": job.config.launch.of(RayConfig).jobs_address, **_request(job)}
        ships = job.config.launch.of(RayConfig).working_directory
        request["ships"] = {_CONFIG: job.config_text, "code of": str(ships) if ships else None}
        return json.dumps(request, indent=2) + "\n"

    def submit(self, job: Job) -> Submission:
        ray = job.config.launch.of(RayConfig)
        address, token = str(ray.jobs_address), ray.token_file
        with tempfile.TemporaryDirectory() as folder, _client(address, token) as client:
            shipped = Path(folder) / "job"
            if ray.working_directory is None:
                shipped.mkdir()
            else:
                _copy_code(ray.working_directory, shipped)
            (shipped / _CONFIG).write_text(job.config_text)
            request = _request(job)
            request["runtime_env"] = {**request["runtime_env"], "working_dir": str(shipped)}
            with _clear(address, "submit the run"):
                name = client.submit_job(**request)
        details = {"address": address, **({"token_file": str(token)} if token else {})}
        return job.submitted(str(name), **details)

    def state(self, submission: Submission) -> State:
        with _client_of(submission) as client, _clear(submission.details["address"], "ask about the run"):
            return _STATES.get(str(client.get_job_status(submission.job).value), "ended")

    def log(self, submission: Submission, run: Path) -> Iterator[str]:
        with _client_of(submission) as client, _clear(submission.details["address"], "read the log"):
            text = client.get_job_logs(submission.job)
        yield text

    def stop(self, submission: Submission, run: Path) -> None:
        # Ray sends SIGTERM, and SIGKILL a few seconds later if RAY_JOB_STOP_WAIT_TIME_S of the cluster is not raised.
        with _client_of(submission) as client, _clear(submission.details["address"], "stop the run"):
            client.stop_job(submission.job)


def _request(job: Job) -> dict[str, Any]:
    """Arguments of Ray's `submit_job`, except the shipped folder."""
    ray = job.config.launch.of(RayConfig)
    command = [ray.python, "-m", "launch.cli", "train", _CONFIG, "--ray-address", "auto"]
    return {
        "entrypoint": "exec " + shlex.join(command),
        "submission_id": f"brt-{job.label}-{job.number:03d}-{job.created:x}",
        "metadata": {"name": job.config.run.name, "run": str(job.run)},
        "runtime_env": {"env_vars": {"PYTHONUNBUFFERED": "1"}},
    }


def _copy_code(source: Path, target: Path) -> None:
    """Copy Python files and their settings, but no hidden files and no data: Ray ships at most a few 100 MB."""

    def left_out(folder: str, names: list[str]) -> set[str]:
        kept = {name for name in names if os.path.isdir(os.path.join(folder, name)) and not name.startswith(".")}
        kept |= {name for name in names if any(Path(name).match(pattern) for pattern in _TAKEN_ALONG)}
        kept -= {name for name in names if name.endswith(".egg-info")}  # without its files it hides the installed one
        return set(names) - (kept - {"__pycache__", "runs", "node_modules"})

    shutil.copytree(source, target, ignore=left_out)


@contextmanager
def _client_of(submission: Submission) -> Iterator[Any]:
    token = submission.details.get("token_file")
    with _client(submission.details["address"], Path(token) if token else None) as client:
        yield client


@contextmanager
def _client(address: str, token: Path | None) -> Iterator[Any]:
    variables = {**joining_environment(), "RAY_ADDRESS": ""}
    if token is not None:
        if not token.is_file():
            raise PlatformError(f"launch.ray.token_file={token}: no such file")
        variables |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    with set_for_a_while(variables):
        from ray.job_submission import JobSubmissionClient

        with _clear(address, "reach it"):
            client = JobSubmissionClient(address)
        yield client


@contextmanager
def _clear(address: str, what: str) -> Iterator[None]:
    """Turn any of Ray's exceptions into one message."""
    try:
        yield
    except Exception as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        refused = "401" in said or "token" in said.lower()
        hint = "; does launch.ray.token_file hold the cluster's token?" if refused else ""
        raise PlatformError(f"Ray at {address}: cannot {what}: {said}{hint}") from None
