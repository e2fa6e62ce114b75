"""Decides, once for all ranks, which kind of device a run uses.  Imports torch only where a rank needs it."""

import json
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Literal

from brt_dist.errors import PlatformError

AS_TOLD = "as run.device says"
_NAMED = 8  # nodes that a message names


@dataclass(frozen=True)
class NodeDevices:
    """A node: its host name, how many ranks it gets, and how many GPUs it has for them."""

    host: str
    ranks: int
    gpus: int

    @property
    def is_enough(self) -> bool:
        return self.gpus >= self.ranks


@dataclass(frozen=True)
class DeviceChoice:
    """The kind of device of all ranks, and why."""

    kind: Literal["cpu", "cuda"]
    reason: str

    def __str__(self) -> str:
        return f"device: {self.kind}, {self.reason}"


def device_for_all(wanted: str, nodes: Sequence[NodeDevices], needed: int | None = None) -> DeviceChoice:
    """The kind of device that every rank of a run uses.

    Args:
        wanted: run.device ("auto", "cpu" or "cuda").
        nodes: those that the run can get.
        needed: how many of them it gets; None: all.

    Raises:
        PlatformError: `cuda`, and too few nodes have a GPU for each of their ranks; or `auto`, and only some have.
    """
    if wanted == "cpu":
        return DeviceChoice("cpu", AS_TOLD)
    needed = len(nodes) if needed is None else needed
    ready = [node for node in nodes if node.is_enough]
    short = [node for node in nodes if not node.is_enough]
    if nodes and len(ready) >= needed:
        return DeviceChoice("cuda", AS_TOLD if wanted == "cuda" else f"a GPU for each rank, {_each(ready)} per node")
    if wanted == "cuda":
        raise PlatformError(
            f"run.device=cuda: not enough GPUs for the ranks of {_listed(short, with_counts=True)}; "
            "nearest: fewer ranks per node (more launch.nodes), or run.device=cpu"
        )
    if ready:
        raise PlatformError(
            f"run.device=auto: the nodes disagree.  With a GPU for each rank: {_listed(ready)}.  Without: "
            f"{_listed(short, with_counts=True)}.  Nearest: leave those out, or run.device=cpu"
        )
    most = max((node.gpus for node in nodes), default=0)
    why = f"no node has more than {most} GPUs for its {_each(short)} ranks" if most else "no node has a GPU"
    return DeviceChoice("cpu", why)


def without_cuda(wanted: str) -> DeviceChoice | None:
    """CPUs, if a run stays on this machine and torch here cannot use GPUs; None if it can, or if no GPU is wanted.

    Raises:
        PlatformError: `wanted` is cuda.
    """
    torch = version("torch")
    if wanted == "cpu" or not torch.endswith("+cpu"):
        return None
    if wanted == "cuda":
        raise PlatformError(f"run.device=cuda, but torch {torch} is built without CUDA; nearest: run.device=cpu")
    return DeviceChoice("cpu", f"torch {torch} is built without CUDA")


def agree_on_device(wanted: str, rank: int, world_size: int, local_rank: int, store: Any) -> DeviceChoice:
    """Decide together with the other ranks: rank 0 decides from what every rank sees.  Collective.

    Args:
        wanted: run.device.
        rank: of this process.
        world_size: number of ranks.
        local_rank: on this node.
        store: the rendezvous store that all ranks have joined.

    Raises:
        PlatformError: see `device_for_all`; the same on all ranks.  Or a rank did not answer.
    """
    import torch

    has_gpu = torch.cuda.is_available() and local_rank < torch.cuda.device_count()
    store.set(f"device/{rank}", json.dumps([socket.gethostname(), has_gpu]))
    try:
        if rank == 0:
            store.set(
                "device", _decided(wanted, [json.loads(store.get(f"device/{other}")) for other in range(world_size)])
            )
        answer = json.loads(store.get("device"))
    except RuntimeError as error:  # of torch, if a rank is missing
        raise PlatformError(f"the ranks could not agree on a device: {str(error).splitlines()[0]}") from None
    if "error" in answer:
        raise PlatformError(answer["error"])
    return DeviceChoice(**answer)


def _decided(wanted: str, seen: Sequence[tuple[str, bool]]) -> str:
    """The decision as JSON, from each rank's host and whether it has a GPU."""
    hosts: dict[str, list[bool]] = {}
    for host, has_gpu in seen:
        hosts.setdefault(host, []).append(has_gpu)
    try:
        found = device_for_all(wanted, [NodeDevices(host, len(ranks), sum(ranks)) for host, ranks in hosts.items()])
    except PlatformError as error:
        return json.dumps({"error": str(error)})
    return json.dumps({"kind": found.kind, "reason": found.reason})


def _each(nodes: Sequence[NodeDevices]) -> str:
    return " or ".join(str(count) for count in sorted({node.ranks for node in nodes}))


def _listed(nodes: Sequence[NodeDevices], with_counts: bool = False) -> str:
    counts = (f" ({node.gpus} GPUs, {node.ranks} ranks)" if with_counts else "" for node in nodes)
    named = [f"{node.host}{count}" for node, count in zip(nodes, counts, strict=True)][:_NAMED]
    more = len(nodes) - len(named)
    return ", ".join(named) + (f" and {more} more" if more else "") if named else "any node"
