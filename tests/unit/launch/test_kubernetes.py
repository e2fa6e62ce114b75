"""Manifests against the API's own schemas, strictly: a field that it does not know is an error."""

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.cluster.kuberay import rendered

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
