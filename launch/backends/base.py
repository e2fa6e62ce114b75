"""The contract of a backend: its section of the config, its rules, and how it submits, watches and stops a run.

A backend is one file in this folder and one line in `brt_dist/kinds.py`.  The config imports that file to build the
section `launch.NAME`, so its top level must import neither the schema nor anything heavy.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from brt_dist.config.section import Section
from launch.backends.job import Job
from launch.run.submission import State, Submission

if TYPE_CHECKING:
    from brt_dist.config.schema import Config


class Backend(ABC):
    """One way to get nodes.

    Attributes:
        section: the keys below `launch.NAME`, None if it has none.
        joins_cluster: it can join a running Ray cluster (`launch.ray_address`) instead of starting its own.
        shares_folders: its nodes share the folders of the submitting machine, so datasets can be checked there.
        requests_gpus: it asks a scheduler for a number of GPUs (`gpus_per_node`).
        hides_config: nobody else can read what is submitted, so the config may contain a password.
    """

    section: ClassVar[type[Section] | None] = None
    joins_cluster: ClassVar[bool] = False
    shares_folders: ClassVar[bool] = False
    requests_gpus: ClassVar[bool] = False
    hides_config: ClassVar[bool] = False

    @classmethod
    def broken_rules(cls, config: "Config") -> Iterator[str]:
        """One message per rule that `config` breaks; depends only on `config`."""
        yield from ()

    @classmethod
    def broken_on_submit(cls, config: "Config") -> Iterator[str]:
        """One message per problem that only the submitting machine can detect."""
        yield from ()

    # All of the following raise PlatformError if the backend cannot be reached or refuses.

    @abstractmethod
    def render(self, job: Job) -> str:
        """The exact text that `submit` applies.  Contains no secret."""

    @abstractmethod
    def submit(self, job: Job) -> Submission:
        """Submit the job and return the submission that the other methods find it by."""

    def submit_many(self, jobs: Sequence[Job]) -> Iterator[Submission]:
        """Submit jobs that differ only in their runs; yields the submission of each, in the same order."""
        for job in jobs:
            yield self.submit(job)

    @abstractmethod
    def state(self, submission: Submission) -> State:
        """The current state of the job."""

    @abstractmethod
    def log(self, submission: Submission, run: Path) -> Iterator[str]:
        """What `brt train` has printed so far, in chunks."""

    @abstractmethod
    def stop(self, submission: Submission, run: Path) -> None:
        """Ask the run to save and stop, or remove it from the queue.  Returns at once."""
