"""Where the processes of a run are started: the section `launch`, with one section for each kind of cluster."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, NonNegativeInt, PositiveFloat, PositiveInt

from brt_dist.config.guards import RecoveryConfig
from brt_dist.config.section import Section

# An empty mapping in YAML is read like a section without keys.
Texts = Annotated[dict[str, str], BeforeValidator(lambda given: {} if given is None else given)]

BackendName = Literal["local", "ray", "slurm", "kubernetes"]


class RayConfig(Section):
    """A Ray cluster that runs already, by its job submission API."""

    jobs_address: str | None = Field(None, description="URL of the cluster's dashboard, for example http://head:8265")
    token_file: Path | None = Field(
        None, description="file with the cluster's token; none: RAY_AUTH_TOKEN_PATH, or ~/.ray/auth_token"
    )
    working_directory: Path | None = Field(
        None, description="folder with code that is shipped with the job; none: brt_dist is installed on the cluster"
    )
    python: str = Field("python", min_length=1, description="the interpreter on the cluster that has brt_dist")


class SlurmConfig(Section):
    """An allocation of Slurm, in which a Ray cluster is started."""

    partition: str | None = Field(None, description="as for sbatch")
    account: str | None = Field(None, description="as for sbatch")
    qos: str | None = Field(None, description="as for sbatch")
    constraint: str | None = Field(None, description="as for sbatch")
    cpus_per_node: PositiveInt | None = Field(None, description="CPUs asked of a node; none: all of it (--exclusive)")
    memory: str | None = Field(None, description="memory asked of a node, for example 200G; none: Slurm's default")
    options: tuple[str, ...] = Field((), description="further options of sbatch, for example [--reservation=june]")
    setup: tuple[str, ...] = Field((), description="shell lines that run first in the job, for example [module load x]")
    container: tuple[str, ...] = Field(
        (), description="words before each command on a node, for example [apptainer, exec, --nv, image.sif]"
    )
    interface: str | None = Field(None, description="network interface between the nodes; none: that of the host name")
    listen: Literal["address", "all"] = Field(
        "address", description="what Ray listens on: the node's address (needs a C compiler there), or all interfaces"
    )
    notice_seconds: PositiveInt = Field(300, description="how long before the time limit the run saves and is requeued")
    requeue: bool = Field(True, description="queue the job again when it was preempted or ran into its time limit")


class KubernetesConfig(Section):
    """A RayJob for the KubeRay operator."""

    context: str | None = Field(None, description="context of kubectl; none: the current one")
    namespace: str = Field("default", min_length=1, description="where the job is made")
    image: str | None = Field(None, description="container image with brt_dist (see cluster/Dockerfile)")
    image_pull_secrets: tuple[str, ...] = Field((), description="names of secrets for the image's registry")
    service_account: str | None = Field(None, description="service account of the pods")
    cpus: str = Field("8", min_length=1, description="CPUs of a node's pod")
    memory: str = Field("64Gi", min_length=1, description="memory of a node's pod")
    shared_memory: str = Field("16Gi", min_length=1, description="size of /dev/shm, part of the pod's memory")
    gpu_resource: str = Field("nvidia.com/gpu", min_length=1, description="name of the resource that counts GPUs")
    node_selector: Texts = Field({}, description="labels that a machine must have")
    tolerations: tuple[str, ...] = Field((), description="keys of taints that are tolerated")
    volumes: Texts = Field({}, description="path in the pod to the name of a persistent volume claim")
    secret_environment: Texts = Field({}, description="environment variable to SECRET/KEY")
    token_secret: str | None = Field(None, description="secret with Ray's token; none: the operator makes one")
    ttl_seconds: NonNegativeInt = Field(3600, description="how long a job that ended is kept")
    retries: NonNegativeInt = Field(2, description="how often the operator starts the job again when it failed")


class LaunchConfig(Section):
    """Where the processes run."""

    backend: BackendName = Field("local", description="what brt submit gives the run to")
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
    ray: RayConfig = Field(default_factory=RayConfig, description="an existing Ray cluster")
    slurm: SlurmConfig = Field(default_factory=SlurmConfig, description="a Slurm cluster")
    kubernetes: KubernetesConfig = Field(default_factory=KubernetesConfig, description="a cluster with KubeRay")

    @property
    def time_limit_seconds(self) -> int | None:
        """The time limit in seconds, none where there is none."""
        if self.time_limit is None:
            return None
        days, _, clock = self.time_limit.rpartition("-")
        hours, minutes, seconds = (*map(int, clock.split(":")), 0)[:3]
        return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds
