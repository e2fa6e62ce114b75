"""What the settings of a backend must be before anything is sent to it."""

import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

from brt_dist.config.schema import Config

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")
_QUANTITY = re.compile(r"\d+(\.\d+)?(m|[kMGTP]i?)?$")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*$")
_SIZE = re.compile(r"\d+[KMGT]?$")
# Options of sbatch that the launcher gives itself.
_TAKEN: tuple[str, ...] = (
    "--nodes",
    "-N",
    "--ntasks",
    "-n",
    "--ntasks-per-node",
    "--output",
    "-o",
    "--error",
    "--signal",
    "--requeue",
)
_TAKEN += ("--no-requeue", "--array", "-a", "--job-name", "-J", "--parsable", "--wrap", "--chdir", "-D", "--export")


def gpus_per_node(config: Config) -> int:
    """GPUs to ask of each node: as said, else one for each of its ranks where the run needs GPUs."""
    if config.launch.gpus_per_node is not None:
        return config.launch.gpus_per_node
    return config.parallel.world_size // config.launch.nodes if config.run.device == "cuda" else 0


def broken_launch_rules(config: Config) -> Iterator[str]:
    """One text for each rule that `config` breaks on the backend that it names."""
    yield from _gpus(config)
    rule = _RULES.get(config.launch.backend)
    if rule is not None:
        yield from rule(config)


def _gpus(config: Config) -> Iterator[str]:
    given, ranks = config.launch.gpus_per_node, config.parallel.world_size // config.launch.nodes
    if config.run.device == "cuda" and given is not None and given < ranks:
        yield (
            f"launch.gpus_per_node={given}, but each of launch.nodes={config.launch.nodes} machines runs {ranks} ranks "
            f"with run.device=cuda; nearest: launch.gpus_per_node={ranks}"
        )


def _ray(config: Config) -> Iterator[str]:
    address = config.launch.ray.jobs_address
    if address is None:
        yield "launch.backend=ray needs launch.ray.jobs_address, the URL of its dashboard, such as http://head:8265"
    elif not re.match(r"https?://[^/\s@]+/?$", address):
        yield f"launch.ray.jobs_address={address!r} must be a URL such as http://head:8265, without user and password"


def _slurm(config: Config) -> Iterator[str]:
    slurm, limit = config.launch.slurm, config.launch.time_limit_seconds
    for option in slurm.options:
        name = option.split("=", 1)[0]
        if not name.startswith("-"):
            yield f"launch.slurm.options: {option!r} is no option; write it as one word, such as --reservation=june"
        elif name in _TAKEN:
            yield f"launch.slurm.options: {name} is given by brt submit itself; leave it out"
    if limit is not None and slurm.notice_seconds >= limit:
        yield (
            f"launch.slurm.notice_seconds={slurm.notice_seconds} is not less than launch.time_limit, {limit} s: the "
            f"run would be stopped as it starts; nearest: launch.slurm.notice_seconds={max(limit // 4, 1)}"
        )
    if slurm.memory is not None and not _SIZE.match(slurm.memory):
        yield f"launch.slurm.memory={slurm.memory!r} must be a number and one of K, M, G, T, such as 200G"
    if slurm.interface is not None and not re.match(r"[\w.@:-]+$", slurm.interface):
        yield f"launch.slurm.interface={shlex.quote(slurm.interface)} is no name of a network interface"


def _kubernetes(config: Config) -> Iterator[str]:
    there = config.launch.kubernetes
    if there.image is None:
        yield "launch.backend=kubernetes needs launch.kubernetes.image, built from cluster/Dockerfile"
    for name, value in (("namespace", there.namespace), ("token_secret", there.token_secret)):
        if value is not None and not _LABEL.match(value):
            yield f"launch.kubernetes.{name}={value!r} must be lower case letters, digits and -, at most 63"
    for name in ("cpus", "memory", "shared_memory"):
        if not _QUANTITY.match(value := getattr(there, name)):
            yield f"launch.kubernetes.{name}={value!r} is no quantity; examples: 8, 500m, 64Gi"
    for variable, source in there.secret_environment.items():
        if not _VARIABLE.match(variable) or not re.match(r"[a-z0-9.-]+/[\w.-]+$", source):
            yield f"launch.kubernetes.secret_environment: {variable}: {source!r} must be NAME: SECRET/KEY"
    yield from _pod_volumes(config)


def _pod_volumes(config: Config) -> Iterator[str]:
    volumes, data = config.launch.kubernetes.volumes, config.data
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
            yield f"{key}={folder} is on no volume of the pods; they have {', '.join(sorted(volumes))}"


_RULES: dict[str, Callable[[Config], Iterator[str]]] = {"ray": _ray, "slurm": _slurm, "kubernetes": _kubernetes}
