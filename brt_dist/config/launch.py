"""Where the processes of a run are started: the section `launch`, with a section for each backend in the table."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, create_model

from brt_dist.config.guards import RecoveryConfig
from brt_dist.config.section import Section
from brt_dist.kinds import BACKENDS

if TYPE_CHECKING:
    from launch.backends.base import Backend

S = TypeVar("S", bound=Section)

_BACKEND = "what brt submit gives the run to"


class LaunchSettings(Section):
    """Where the processes run, without the sections of the backends."""

    backend: str = Field("local", description=_BACKEND)
    nodes: PositiveInt = Field(1, description="machines")
    gpus_per_node: NonNegativeInt | None = Field(
        None, description="GPUs asked of a node; none: one for each rank with run.device=cuda, else none"
    )
    time_limit: str | None = Field(
        None, pattern=r"^(\d+-)?\d{1,3}:\d\d(:\d\d)?$", description="longest time of a job: H:MM, H:MM:SS or D-H:MM:SS"
    )
    ray_address: str | None = Field(
        None, description="address of a running Ray cluster to join (host:port); none: start Ray on this machine"
    )
    threads_per_rank: PositiveInt | None = Field(
        None, description="CPU threads of a rank; none: cores / ranks of the node"
    )
    start_timeout_seconds: PositiveFloat = Field(300.0, description="longest wait for nodes and for all ranks to meet")
    preflight: bool = Field(True, description="check the nodes before the ranks start")
    recovery: RecoveryConfig = Field(default_factory=RecoveryConfig, description="what follows when an attempt fails")

    @property
    def time_limit_seconds(self) -> int | None:
        """The time limit in seconds, none where there is none."""
        if self.time_limit is None:
            return None
        days, _, clock = self.time_limit.rpartition("-")
        hours, minutes, seconds = (*map(int, clock.split(":")), 0)[:3]
        return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds

    def of(self, kind: type[S]) -> S:
        """The section of a backend, by its class."""
        return next(value for value in self.__dict__.values() if isinstance(value, kind))


def with_backends(kinds: "Mapping[str, type[Backend]]") -> type[LaunchSettings]:
    """The section `launch`: the settings of all backends, and below them a section for each of `kinds` that has one."""
    fields: dict[str, Any] = {"backend": (Literal[*kinds], Field("local", description=_BACKEND))}
    for name, kind in kinds.items():
        if kind.section is not None:
            about = (kind.section.__doc__ or name).splitlines()[0].rstrip(".")
            fields[name] = (kind.section, Field(default_factory=kind.section, description=about))
    return create_model(
        "LaunchConfig", __base__=LaunchSettings, __doc__="Where the processes run.", __module__=__name__, **fields
    )


if TYPE_CHECKING:
    LaunchConfig = LaunchSettings
else:
    LaunchConfig = with_backends(BACKENDS)
