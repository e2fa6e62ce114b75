"""Manifests against the API's own schemas, strictly: a field that it does not know is an error."""

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from brt_dist.config.loading import load
from launch.backends.kubernetes import KubernetesBackend
from tests.cluster.kuberay import CONFIG, rendered

ROOT = Path(__file__).parents[3]
VERSION = "1.32"


def templates() -> list[dict[str, Any]]:
    """The pods of a rendered RayJob, as what the operator makes of them."""
    found = []
    for settings in ((), ("launch.nodes=1", "parallel.data=1", "run.device=cpu")):
        cluster = rendered(*settings)[1]["spec"]["rayClusterSpec"]
        for group in (cluster["headGroupSpec"], *cluster.get("workerGroupSpecs", [])):
            found.append({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "node"}, **group["template"]})
    return found


def test_pods_and_config_maps_are_valid() -> None:
    for manifest in [*templates(), rendered()[0]]:
        kubernetes_validate.validate(manifest, VERSION, strict=True)


def test_pods_have_what_training_needs() -> None:
    pod = templates()[0]["spec"]
    (container,) = pod["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "8"
    assert {"name": "shared-memory", "mountPath": "/dev/shm"} in container["volumeMounts"]
    (memory,) = [volume for volume in pod["volumes"] if volume["name"] == "shared-memory"]
    assert memory["emptyDir"]["medium"] == "Memory"
    secret = {"secretKeyRef": {"name": "mlflow", "key": "password"}}
    assert {"name": "MLFLOW_TRACKING_PASSWORD", "valueFrom": secret} in container["env"]
    assert pod["nodeSelector"] == {"gpu": "h100"} and pod["tolerations"][0]["key"] == "nvidia.com/gpu"


def test_an_unknown_field_is_noticed() -> None:
    pod = templates()[0]
    pod["spec"]["nodeSelectors"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(pod, VERSION, strict=True)


@pytest.mark.parametrize("path", sorted(ROOT.glob("cluster/kubernetes/base/*.yaml")), ids=lambda path: path.stem)
def test_what_an_operator_applies_is_valid(path: Path) -> None:
    (manifest,) = yaml.safe_load_all(path.read_text())
    if manifest["kind"] == "Kustomization":
        assert all((path.parent / name).is_file() for name in manifest["resources"])
    else:
        kubernetes_validate.validate(manifest, VERSION, strict=True)


def test_rdma_queues_priorities_and_folders_of_the_nodes() -> None:
    pod = templates()[0]["spec"]
    (container,), (init,) = pod["containers"], pod["initContainers"]
    assert container["resources"]["limits"]["rdma/ib"] == "1" == container["resources"]["requests"]["rdma/ib"]
    assert container["securityContext"]["capabilities"] == {"add": ["IPC_LOCK"]}
    assert pod["priorityClassName"] == "high"
    assert pod["tolerations"] == [
        {"key": "nvidia.com/gpu", "operator": "Exists"},
        {"key": "spot", "value": "true", "effect": "NoSchedule", "operator": "Equal"},
    ]
    assert {"name": "host-0", "hostPath": {"path": "/mnt/nvme", "type": "Directory"}} in pod["volumes"]
    assert init["command"] == ["bash", "-euo", "pipefail", "-c", "cp -r /shared/data /local/data"]
    assert {"name": "host-0", "mountPath": "/local"} in init["volumeMounts"]
    settings, job = rendered()
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "training"
    assert "kueue.x-k8s.io/queue-name" not in settings["metadata"]["labels"]


def test_what_kubernetes_would_refuse_is_refused_here() -> None:
    def problems(*settings: str) -> list[str]:
        return list(KubernetesBackend.broken_rules(load(CONFIG, settings).config))

    assert problems() == []
    (text,) = problems('launch.kubernetes.tolerations=["spot=true:Never"]')
    assert "KEY=VALUE:EFFECT" in text
    (text,) = problems("launch.kubernetes.resources={rdma/ib: many}")
    assert "is not a quantity" in text
    found = problems("launch.kubernetes.host_paths={local: /mnt}")
    assert "launch.kubernetes.host_paths: 'local' must be an absolute path" in found
