"""The section `launch`: where a run's processes start, with a subsection for each backend."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, create_model

from brt_dist.config.environment import NETWORK_DEFAULTS, PASSED_ON, Variables
from brt_dist.config.guards import RecoveryConfig
from brt_dist.config.section import Section
from brt_dist.kinds import BACKENDS

if TYPE_CHECKING:
    from launch.backends.base import Backend

S = TypeVar("S", bound=Section)

_BACKEND = "where `brt submit` submits the run"


class LaunchSettings(Section):
    """The settings that all backends share."""

    backend: str = Field("local", description=_BACKEND)
    nodes: PositiveInt = Field(1, description="number of nodes")
    gpus_per_node: NonNegativeInt | None = Field(
        None, description="GPUs to request per node; unset: one per rank if run.device=cuda, otherwise none"
    )
    gpu_kind: str | None = Field(
        None,
        description="device to plan for: h100, h200, a100, b200, mi300x, or a file as for `brt plan --device`, which "
        "may describe CPUs; unset: this machine's device, if the run is local",
    )
    time_limit: str | None = Field(
        None,
        pattern=r"^([0-9]{1,4}-)?[0-9]{1,3}:[0-5][0-9](:[0-5][0-9])?$",
        description="time limit of the job: H:MM, H:MM:SS or D-H:MM:SS, the same on every backend",
    )
    ray_address: str | None = Field(
        None,
        description="address of a running Ray cluster (host:port); `local`: start Ray on this machine; unset: start "
        "it if the run needs it, which a run on one machine with local data does not",
    )
    threads_per_rank: PositiveInt | None = Field(
        None, description="CPU threads per rank; unset: the node's cores divided by its ranks"
    )
    environment: Variables = Field(
        {},
        description="environment variables of every rank, on every backend, as NAME: VALUE; they override all others",
    )
    default_environment: Variables = Field(
        NETWORK_DEFAULTS,
        description="environment variables that ranks get if nothing else sets them: what NCCL needs on networks "
        "with RDMA; a mapping in the config replaces it",
    )
    pass_environment: tuple[str, ...] = Field(
        PASSED_ON,
        description="names of variables that every rank gets from the environment of `brt train`; * matches any text",
    )
    start_timeout_seconds: PositiveFloat | None = Field(
        None,
        description="longest wait for the nodes and for the rendezvous of all ranks; unset: 300, plus 1 per node",
    )
    preflight: bool = Field(True, description="check the nodes before the ranks start")
    recovery: RecoveryConfig = Field(default_factory=RecoveryConfig, description="what happens when an attempt fails")

    @property
    def start_seconds(self) -> float:
        """Longest wait for the nodes and for the rendezvous; by default it grows with the number of connections."""
        return self.start_timeout_seconds or 300.0 + self.nodes

    @property
    def time_limit_seconds(self) -> int | None:
        """The time limit in seconds; None if there is none."""
        if self.time_limit is None:
            return None
        days, _, clock = self.time_limit.rpartition("-")
        hours, minutes, seconds = (*map(int, clock.split(":")), 0)[:3]
        return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds

    def of(self, kind: type[S]) -> S:
        """The section of a backend, by its class."""
        return next(value for value in self.__dict__.values() if isinstance(value, kind))


def with_backends(kinds: "Mapping[str, type[Backend]]") -> type[LaunchSettings]:
    """The class of the section `launch`: shared settings, and a subsection for each of `kinds` that has one."""
    fields: dict[str, Any] = {"backend": (Literal[*kinds], Field("local", description=_BACKEND))}
    for name, kind in kinds.items():
        if kind.section is not None:
            about = (kind.section.__doc__ or name).splitlines()[0].rstrip(".")
            fields[name] = (kind.section, Field(default_factory=kind.section, description=about))
    return create_model(
        "LaunchConfig", __base__=LaunchSettings, __doc__="Backend, nodes and recovery.", __module__=__name__, **fields
    )


if TYPE_CHECKING:
    LaunchConfig = LaunchSettings
else:
    LaunchConfig = with_backends(BACKENDS)
