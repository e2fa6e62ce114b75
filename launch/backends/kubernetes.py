"""Kubernetes: a RayJob of the KubeRay operator, and a ConfigMap with the resolved config."""

from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from brt_dist.config.launch_rules import gpus_per_node
from brt_dist.config.loading import dump
from launch.backends.commands import call
from launch.backends.job import Job, Record, State
from pipelines.cluster import quiet

_CONFIG = "/etc/brt/config.yaml"
_ENDED = ("SUCCEEDED", "FAILED", "STOPPED")


class _Dumper(yaml.SafeDumper):
    """Text of several lines as a block, so that people can read the config in the manifest."""


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Dumper.add_representer(str, _text)


class KubernetesBackend:
    """The job is the name of the RayJob; `details` has its namespace and the context of kubectl."""

    def render(self, job: Job) -> str:
        return yaml.dump_all(_manifests(job), Dumper=_Dumper, sort_keys=False, allow_unicode=True)

    def submit(self, job: Job) -> Record:
        there = job.config.launch.kubernetes
        details = {"namespace": there.namespace, **({"context": there.context} if there.context else {})}
        record = Record.of(job, _name(job), **details)
        call([*_kubectl(record), "create", "--filename=-"], text=self.render(job), what="make the RayJob")
        return record

    def state(self, record: Record) -> State:
        form = "--output=jsonpath={.status.jobDeploymentStatus} {.status.jobStatus}"
        found = call(
            [*_kubectl(record), "get", "rayjob", record.job, "--ignore-not-found", form], what="ask about the RayJob"
        )
        words = found.split()
        if not found.strip():
            there = call(
                [*_kubectl(record), "get", "rayjob", record.job, "--ignore-not-found", "--output=name"],
                what="ask about the RayJob",
            )
            return "queued" if there.strip() else "ended"
        if words[-1] in _ENDED or words[0] in ("Complete", "Failed"):
            return "ended"
        return "running" if words[-1] == "RUNNING" else "queued"

    def log(self, record: Record, run: Path) -> Iterator[str]:
        # The operator submits from a pod of its own, which prints what `brt train` prints.
        select = f"--selector=job-name={record.job}"
        yield call([*_kubectl(record), "logs", select, "--tail=-1"], what="read the log of the RayJob")

    def stop(self, record: Record, run: Path) -> None:
        # Suspending ends the pods with SIGTERM, on which the run saves, and keeps the job for its log.
        patch = '--patch={"spec":{"suspend":true}}'
        call([*_kubectl(record), "patch", "rayjob", record.job, "--type=merge", patch], what="stop the RayJob")


def _kubectl(record: Record) -> list[str]:
    context = record.details.get("context")
    return ["kubectl", *([f"--context={context}"] if context else []), f"--namespace={record.details['namespace']}"]


def _name(job: Job) -> str:
    """At most 47 characters, which is what KubeRay allows."""
    return f"brt-{job.label[:28].strip('-')}-{job.number}-{job.created % 0xFFFFFF:06x}"


def _manifests(job: Job) -> list[dict[str, Any]]:
    there, launch = job.config.launch.kubernetes, job.config.launch
    name = _name(job)
    common = {
        "namespace": there.namespace,
        "labels": {"app.kubernetes.io/name": "brt", "app.kubernetes.io/instance": name},
        "annotations": {"brt/run": str(job.run), "brt/name": job.config.run.name},
    }
    config = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, **common},
        "data": {"config.yaml": dump(job.config)},
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
    return [config, {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": {"name": name, **common}, "spec": spec}]


def _start_parameters(job: Job) -> dict[str, str]:
    return {"num-gpus": str(gpus_per_node(job.config)), "object-store-memory": str(200 << 20)}


def _pod(job: Job, name: str) -> dict[str, Any]:
    there, gpus = job.config.launch.kubernetes, gpus_per_node(job.config)
    amounts = {"cpu": there.cpus, "memory": there.memory, **({there.gpu_resource: str(gpus)} if gpus else {})}
    claims = sorted(set(there.volumes.values()))
    environment: list[dict[str, Any]] = [{"name": key, "value": value} for key, value in quiet().items()]
    environment += [
        {"name": variable, "valueFrom": {"secretKeyRef": dict(zip(("name", "key"), source.split("/"), strict=True))}}
        for variable, source in there.secret_environment.items()
    ]
    container = {
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
        ],
        "securityContext": {"allowPrivilegeEscalation": False},
    }
    pod: dict[str, Any] = {
        "containers": [container],
        "volumes": [
            {"name": "config", "configMap": {"name": name}},
            {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": there.shared_memory}},
            *(
                {"name": f"claim-{index}", "persistentVolumeClaim": {"claimName": claim}}
                for index, claim in enumerate(claims)
            ),
        ],
        "terminationGracePeriodSeconds": 600,  # a checkpoint takes its time
    }
    if there.node_selector:
        pod["nodeSelector"] = dict(there.node_selector)
    if there.tolerations:
        pod["tolerations"] = [{"key": key, "operator": "Exists"} for key in there.tolerations]
    if there.image_pull_secrets:
        pod["imagePullSecrets"] = [{"name": secret} for secret in there.image_pull_secrets]
    if there.service_account:
        pod["serviceAccountName"] = there.service_account
    return {"spec": pod}
