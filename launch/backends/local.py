"""This machine: `brt train` in its own session, which survives the terminal."""

import os
import shlex
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from brt_dist.errors import PlatformError
from brt_dist.run_directory import RunDirectory
from launch.backends.base import Backend
from launch.backends.job import Job, chunks, private_folder
from launch.run.facts import process_start
from launch.run.python import module_command
from launch.run.submission import State, Submission

if TYPE_CHECKING:
    from brt_dist.config.schema import Config


class LocalBackend(Backend):
    """The job is a process: `job` is its id, and `details["start"]` tells it from a later process with the same id."""

    joins_cluster = True
    shares_folders = True
    hides_config = True

    @classmethod
    def broken_on_submit(cls, config: "Config") -> Iterator[str]:
        launch = config.launch
        if launch.nodes > 1 and launch.ray_address in (None, "local"):
            yield (
                f"launch.nodes={launch.nodes} with launch.backend=local: this machine is one node; nearest: "
                "launch.nodes=1, or set launch.ray_address to a cluster that has them"
            )

    def render(self, job: Job) -> str:
        command = shlex.join(module_command("launch.cli", "train", str(RunDirectory(job.run).config)))
        log = shlex.quote(str(RunDirectory(job.run).submission_log(job.number)))
        return f"cd {shlex.quote(os.getcwd())}\nexec {command} </dev/null >{log} 2>&1\n"

    def submit(self, job: Job) -> Submission:
        private_folder(job.folder)
        try:
            process = subprocess.Popen(
                ["bash", "-c", self.render(job)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError as error:
            raise PlatformError(f"cannot start bash on this machine: {error.strerror}") from None
        return job.submitted(str(process.pid), start=process_start(process.pid) or "", host=os.uname().nodename)

    def state(self, submission: Submission) -> State:
        if submission.details.get("host") != os.uname().nodename:
            return "unknown"
        return "running" if process_start(int(submission.job)) == submission.details["start"] else "ended"

    def log(self, submission: Submission, run: Path) -> Iterator[str]:
        return chunks(RunDirectory(run).submission_log(submission.number))

    def stop(self, submission: Submission, run: Path) -> None:
        state = self.state(submission)
        if state == "unknown":
            raise PlatformError(f"the run was submitted on {submission.details.get('host')}; stop it from there")
        if state == "running":
            with suppress(ProcessLookupError):
                os.kill(int(submission.job), signal.SIGTERM)
