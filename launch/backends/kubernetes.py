"""Kubernetes: a RayJob of the KubeRay operator, and a ConfigMap with the resolved config."""

import re
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import yaml
from pydantic import BeforeValidator, Field, NonNegativeInt

from brt_dist.config.launch_rules import gpus_per_node
from brt_dist.config.section import Section
from launch.backends.base import Backend
from launch.backends.commands import call
from launch.backends.job import Job
from launch.run.submission import State, Submission
from pipelines.cluster import quiet

if TYPE_CHECKING:
    from brt_dist.config.schema import Config

_CONFIG = "/etc/brt/config.yaml"
_QUEUE = "kueue.x-k8s.io/queue-name"
_ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")
_QUANTITY = re.compile(r"\d+(\.\d+)?(m|[kMGTP]i?)?$")
_TOLERATION = re.compile(
    r"(?P<key>[\w./-]+)(=(?P<value>[\w.-]+))?(:(?P<effect>NoSchedule|PreferNoSchedule|NoExecute))?$"
)
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*$")


def _texts(given: Any) -> Any:
    """Accepts what YAML makes of an empty mapping (a section without keys) and of `rdma/ib: 1` (a number)."""
    if not isinstance(given, dict):
        return {} if given is None else given
    return {key: str(value) if type(value) is int else value for key, value in given.items()}


Texts = Annotated[dict[str, str], BeforeValidator(_texts)]


class KubernetesConfig(Section):
    """A RayJob for the KubeRay operator."""

    context: str | None = Field(None, description="kubectl context; unset: the current one")
    namespace: str = Field("default", min_length=1, description="namespace of the job")
    image: str | None = Field(None, description="container image with brt_dist (see cluster/Dockerfile)")
    image_pull_secrets: tuple[str, ...] = Field((), description="names of the secrets for the image's registry")
    service_account: str | None = Field(None, description="service account of the pods")
    cpus: str = Field("8", min_length=1, description="CPUs of a node's pod")
    memory: str = Field("64Gi", min_length=1, description="memory of a node's pod")
    shared_memory: str = Field("16Gi", min_length=1, description="size of /dev/shm, part of the pod's memory")
    gpu_resource: str = Field("nvidia.com/gpu", min_length=1, description="name of the resource that counts GPUs")
    node_selector: Texts = Field({}, description="labels that a node must have")
    tolerations: tuple[str, ...] = Field((), description="taints to tolerate, as KEY, KEY=VALUE or KEY=VALUE:EFFECT")
    resources: Texts = Field({}, description="more resources of a node's pod, for RDMA for example {rdma/ib: 1}")
    ipc_lock: bool = Field(False, description="let the pods lock memory (IPC_LOCK), which RDMA needs")
    queue: str | None = Field(None, description="local queue of Kueue, which starts the job when there is room")
    priority_class: str | None = Field(None, description="priority class of the pods")
    host_paths: Texts = Field({}, description="folders of the nodes, as MOUNT_PATH: FOLDER_ON_THE_NODE")
    init: tuple[str, ...] = Field(
        (), description="shell lines that run first in each pod, with its volumes, for example to copy a dataset"
    )
    volumes: Texts = Field({}, description="persistent volumes, as MOUNT_PATH: CLAIM")
    secret_environment: Texts = Field({}, description="environment variables from secrets, as NAME: SECRET/KEY")
    token_secret: str | None = Field(None, description="secret with Ray's token; unset: the operator creates one")
    ttl_seconds: NonNegativeInt = Field(3600, description="seconds to keep a finished job")
    retries: NonNegativeInt = Field(2, description="how many times the operator retries a failed job")


class _Dumper(yaml.SafeDumper):
    """Writes multi-line text as a block, which keeps the config in the manifest readable."""


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Dumper.add_representer(str, _text)


class KubernetesBackend(Backend):
    """The job is the name of the RayJob; `details` holds its namespace and the kubectl context."""

    section = KubernetesConfig
    requests_gpus = True

    @classmethod
    def broken_rules(cls, config: "Config") -> Iterator[str]:
        there = config.launch.of(KubernetesConfig)
        if there.image is None:
            yield "launch.backend=kubernetes needs launch.kubernetes.image, built from cluster/Dockerfile"
        for name, value in (("namespace", there.namespace), ("token_secret", there.token_secret)):
            if value is not None and not _LABEL.match(value):
                yield f"launch.kubernetes.{name}={value!r} must be at most 63 lower case letters, digits and -"
        for name in ("cpus", "memory", "shared_memory"):
            if not _QUANTITY.match(value := getattr(there, name)):
                yield f"launch.kubernetes.{name}={value!r} is not a Kubernetes quantity; examples: 8, 500m, 64Gi"
        for variable, source in there.secret_environment.items():
            if not _VARIABLE.match(variable) or not re.match(r"[a-z0-9.-]+/[\w.-]+$", source):
                yield f"launch.kubernetes.secret_environment: {variable}: {source!r} must be NAME: SECRET/KEY"
        for name, value in there.resources.items():
            if not _QUANTITY.match(value):
                yield f"launch.kubernetes.resources: {name}: {value!r} is not a quantity; example: rdma/ib: 1"
        for text in there.tolerations:
            if not _TOLERATION.match(text):
                yield (
                    f"launch.kubernetes.tolerations: {text!r} must be KEY, KEY=VALUE or KEY=VALUE:EFFECT, where EFFECT "
                    "is NoSchedule, PreferNoSchedule or NoExecute"
                )
        for path in (path for pair in there.host_paths.items() for path in pair if not path.startswith("/")):
            yield f"launch.kubernetes.host_paths: {path!r} must be an absolute path"
        yield from _pod_volumes(config)

    def render(self, job: Job) -> str:
        return yaml.dump_all(_manifests(job), Dumper=_Dumper, sort_keys=False, allow_unicode=True)

    def submit(self, job: Job) -> Submission:
        there = job.config.launch.of(KubernetesConfig)
        details = {"namespace": there.namespace, **({"context": there.context} if there.context else {})}
        submission = job.submitted(_name(job), **details)
        call([*_kubectl(submission), "create", "--filename=-"], text=self.render(job), what="create the RayJob")
        return submission

    def state(self, submission: Submission) -> State:
        form = "--output=jsonpath={.status.jobDeploymentStatus} {.status.jobStatus}"
        found = call(
            [*_kubectl(submission), "get", "rayjob", submission.job, "--ignore-not-found", form],
            what="ask about the RayJob",
        )
        words = found.split()
        if not found.strip():
            there = call(
                [*_kubectl(submission), "get", "rayjob", submission.job, "--ignore-not-found", "--output=name"],
                what="ask about the RayJob",
            )
            return "queued" if there.strip() else "ended"
        if words[-1] in _ENDED or words[0] in ("Complete", "Failed"):
            return "ended"
        return "running" if words[-1] == "RUNNING" else "queued"

    def log(self, submission: Submission, run: Path) -> Iterator[str]:
        # The operator submits from its own pod, which prints what `brt train` prints.
        select = f"--selector=job-name={submission.job}"
        yield call([*_kubectl(submission), "logs", select, "--tail=-1"], what="read the log of the RayJob")

    def stop(self, submission: Submission, run: Path) -> None:
        # Suspending sends SIGTERM to the pods, so the run saves, and keeps the job and its log.
        patch = '--patch={"spec":{"suspend":true}}'
        call([*_kubectl(submission), "patch", "rayjob", submission.job, "--type=merge", patch], what="stop the RayJob")


def _pod_volumes(config: "Config") -> Iterator[str]:
    there, data = config.launch.of(KubernetesConfig), config.data
    volumes = [*there.volumes, *there.host_paths]
    if not volumes:
        yield (
            "launch.kubernetes.volumes is empty, so the run directory and the datasets would be lost with the pods; "
            "nearest: launch.kubernetes.volumes={/shared: NAME-OF-A-CLAIM} with both below it"
        )
        return
    for path in volumes:
        if not path.startswith("/"):
            yield f"launch.kubernetes.volumes: {path!r} must be an absolute path in the pod"
    named = [("run.directory", config.run.directory), ("data.validation", data.validation)]
    named += [("data.mixture" if data.mixture else "data.dataset", place) for place, _ in data.training]
    for key, folder in named:
        if isinstance(folder, Path) and not any(folder.is_relative_to(path) for path in volumes):
            yield f"{key}={folder} is not on a volume of the pods, which are {', '.join(sorted(volumes))}"


def _kubectl(submission: Submission) -> list[str]:
    context = submission.details.get("context")
    return ["kubectl", *([f"--context={context}"] if context else []), f"--namespace={submission.details['namespace']}"]


def _name(job: Job) -> str:
    """At most 47 characters, which is what KubeRay allows."""
    return f"brt-{job.label[:28].strip('-')}-{job.number}-{job.created % 0xFFFFFF:06x}"


def _manifests(job: Job) -> list[dict[str, Any]]:
    there, launch = job.config.launch.of(KubernetesConfig), job.config.launch
    name = _name(job)
    common: dict[str, Any] = {
        "namespace": there.namespace,
        "labels": {"app.kubernetes.io/name": "brt", "app.kubernetes.io/instance": name},
        "annotations": {"brt/run": str(job.run), "brt/name": job.config.run.name},
    }
    queued = {"labels": {**common["labels"], **({_QUEUE: there.queue} if there.queue else {})}}
    config = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, **common},
        "data": {"config.yaml": job.config_text},
    }
    cluster: dict[str, Any] = {
        "rayVersion": version("ray"),
        "authOptions": {"mode": "token", **({"secretName": there.token_secret} if there.token_secret else {})},
        "headGroupSpec": {
            "serviceType": "ClusterIP",
            "rayStartParams": _start_parameters(job),
            "template": _pod(job, name),
        },
    }
    if launch.nodes > 1:
        count = launch.nodes - 1  # the head is a node too: it has the same pod, and runs ranks
        cluster["workerGroupSpecs"] = [
            {
                "groupName": "nodes",
                "replicas": count,
                "minReplicas": count,
                "maxReplicas": count,
                "rayStartParams": _start_parameters(job),
                "template": _pod(job, name),
            }
        ]
    spec: dict[str, Any] = {
        "entrypoint": f"brt train {_CONFIG} --ray-address auto",
        "submissionMode": "K8sJobMode",
        "backoffLimit": there.retries,
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": there.ttl_seconds,
        "rayClusterSpec": cluster,
    }
    if launch.time_limit_seconds is not None:
        spec["activeDeadlineSeconds"] = launch.time_limit_seconds
    metadata = {"name": name, **common, **queued}
    return [config, {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": metadata, "spec": spec}]


def _start_parameters(job: Job) -> dict[str, str]:
    return {"num-gpus": str(gpus_per_node(job.config)), "object-store-memory": str(200 << 20)}


def _pod(job: Job, name: str) -> dict[str, Any]:
    there, gpus = job.config.launch.of(KubernetesConfig), gpus_per_node(job.config)
    amounts = {"cpu": there.cpus, "memory": there.memory, **({there.gpu_resource: str(gpus)} if gpus else {})}
    amounts |= there.resources
    claims = sorted(set(there.volumes.values()))
    environment: list[dict[str, Any]] = [{"name": key, "value": value} for key, value in quiet().items()]
    environment += [
        {"name": variable, "valueFrom": {"secretKeyRef": dict(zip(("name", "key"), source.split("/"), strict=True))}}
        for variable, source in there.secret_environment.items()
    ]
    container: dict[str, Any] = {
        "name": "ray",
        "image": there.image,
        "env": environment,
        "resources": {"requests": amounts, "limits": dict(amounts)},
        "volumeMounts": [
            {"name": "config", "mountPath": "/etc/brt", "readOnly": True},
            {"name": "shared-memory", "mountPath": "/dev/shm"},
            *(
                {"name": f"claim-{claims.index(claim)}", "mountPath": path}
                for path, claim in sorted(there.volumes.items())
            ),
            *(
                {"name": f"host-{index}", "mountPath": path}
                for index, (path, _) in enumerate(sorted(there.host_paths.items()))
            ),
        ],
        "securityContext": {"allowPrivilegeEscalation": False},
    }
    if there.ipc_lock:
        container["securityContext"] = {"allowPrivilegeEscalation": False, "capabilities": {"add": ["IPC_LOCK"]}}
    pod: dict[str, Any] = {
        "containers": [container],
        "volumes": [
            {"name": "config", "configMap": {"name": name}},
            {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": there.shared_memory}},
            *(
                {"name": f"claim-{index}", "persistentVolumeClaim": {"claimName": claim}}
                for index, claim in enumerate(claims)
            ),
            *(
                {"name": f"host-{index}", "hostPath": {"path": folder, "type": "Directory"}}
                for index, (_, folder) in enumerate(sorted(there.host_paths.items()))
            ),
        ],
        "terminationGracePeriodSeconds": 600,  # saving a checkpoint takes time
    }
    if there.node_selector:
        pod["nodeSelector"] = dict(there.node_selector)
    if there.tolerations:
        pod["tolerations"] = [_toleration(text) for text in there.tolerations]
    if there.priority_class:
        pod["priorityClassName"] = there.priority_class
    if there.init:
        lines = "\n".join(there.init)
        kept = {key: container[key] for key in ("image", "env", "volumeMounts", "securityContext")}
        pod["initContainers"] = [{"name": "init", **kept, "command": ["bash", "-euo", "pipefail", "-c", lines]}]
    if there.image_pull_secrets:
        pod["imagePullSecrets"] = [{"name": secret} for secret in there.image_pull_secrets]
    if there.service_account:
        pod["serviceAccountName"] = there.service_account
    return {"spec": pod}


def _toleration(text: str) -> dict[str, str]:
    """KEY, KEY=VALUE or KEY=VALUE:EFFECT in the form that Kubernetes expects."""
    found = _TOLERATION.match(text)
    parts = {name: value for name, value in found.groupdict().items() if value} if found else {"key": text}
    return {**parts, "operator": "Equal" if "value" in parts else "Exists"}
