"""Check what `brt submit --backend kubernetes` renders against KubeRay's own schema.

Run by `make -C tests/cluster kubernetes CRD=FILE`.  FILE is ray.io_rayjobs.yaml of the KubeRay release that the cluster
runs (ray-operator/config/crd/bases there).  Every field must be known to the schema: the API server silently drops
others.
"""

import sys
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft7Validator

from brt_dist.config.loading import load
from brt_dist.kinds import BACKENDS
from launch.backends.job import Job

CONFIG = """\
data: {dataset: /shared/data, validation: /shared/validation}
run: {name: "a 'run' $(x)", directory: /shared/run, steps: 5000, device: cuda}
parallel: {data: 16}
launch:
  backend: kubernetes
  nodes: 2
  time_limit: "2-00:00:00"
  kubernetes:
    image: registry/brt:1
    image_pull_secrets: [registry]
    service_account: brt
    node_selector: {gpu: h100}
    tolerations: [nvidia.com/gpu, "spot=true:NoSchedule"]
    resources: {rdma/ib: 1}
    ipc_lock: true
    queue: training
    priority_class: high
    host_paths: {/local: /mnt/nvme}
    init: ["cp -r /shared/data /local/data"]
    volumes: {/shared: brt-shared, /scratch: brt-scratch}
    secret_environment: {MLFLOW_TRACKING_PASSWORD: mlflow/password}
    token_secret: brt-token
"""


def rendered(*settings: str) -> list[dict[str, Any]]:
    """The manifests of a config in which everything is set."""
    return list(yaml.safe_load_all(BACKENDS["kubernetes"]().render(Job(load(CONFIG, settings).config, 1))))


def strict(schema: Any) -> Any:
    """`schema` with every object closed, unless it says that it takes anything."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: strict(value) for key, value in schema.items()}
    is_object = schema.get("type") == "object" and isinstance(schema.get("properties"), dict)
    if is_object and "additionalProperties" not in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        closed["additionalProperties"] = False
    if schema.get("x-kubernetes-int-or-string"):
        closed.pop("type", None)
    return closed


def problems(crd: Path, manifest: dict[str, Any]) -> list[str]:
    """What is wrong with a RayJob by the schema of its version."""
    definition = yaml.safe_load(crd.read_text())
    version = manifest["apiVersion"].rpartition("/")[2]
    (schema,) = [
        item["schema"]["openAPIV3Schema"] for item in definition["spec"]["versions"] if item["name"] == version
    ]
    schema = strict(schema)
    schema["properties"]["metadata"] = {"type": "object"}  # the API server checks that, not the CRD
    return [f"{error.json_path}: {error.message[:200]}" for error in Draft7Validator(schema).iter_errors(manifest)]


def main(crd: Path) -> int:
    found = 0
    for settings in ((), ("launch.nodes=1", "parallel.data=1", "run.device=cpu")):
        for problem in problems(crd, rendered(*settings)[1]):
            print(problem)
            found += 1
    print(f"{found} problems against {crd}")
    return int(found > 0)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
