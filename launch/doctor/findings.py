"""Turns the reports of nodes into findings: what is wrong with which of them.  Pure."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from launch.doctor.node import NodeReport

_CLOCK_SECONDS = 2.0  # events of several nodes would be out of order
_DISK_BYTES = 1 << 30
_MEMORY_BYTES = 1 << 30
_DEVICE_SHARE = 0.8  # share of a GPU's memory: if less is free, somebody else is using it


@dataclass(frozen=True)
class Finding:
    """The result of a check.

    Attributes:
        check: what was checked.
        status: `warning` does not stop a run.
        message: what was found.
        node: the node with the problem, if it is a single one.
    """

    check: str
    status: Literal["ok", "warning", "failed"]
    message: str
    node: str | None = None


def versions(reports: Mapping[str, NodeReport]) -> list[Finding]:
    """Report nodes on which a package has another version than on most."""
    found = []
    names = sorted({name for report in reports.values() for name in report.versions})
    for name in names:
        there = {node: report.versions.get(name, "not installed") for node, report in reports.items()}
        usual = Counter(there.values()).most_common(1)[0][0]
        found += [
            Finding("versions", "failed", f"{name} is {value} here, and {usual} on the other nodes", node)
            for node, value in there.items()
            if value != usual
        ]
    return found or [Finding("versions", "ok", f"{len(names)} packages match on {_nodes(len(reports))}")]


def devices(reports: Mapping[str, NodeReport], ranks: int, wanted: bool, is_auto: bool = False) -> list[Finding]:
    """Report nodes with too few GPUs, GPUs of another kind, GPUs in use, or GPUs that Ray does not know of.

    Args:
        reports: by node.
        ranks: of each node.
        wanted: the run needs GPUs, one per rank.
        is_auto: run.device=auto, so a GPU that Ray does not offer would silently stay unused.
    """
    if not wanted:
        unused = {node: len(report.devices) for node, report in reports.items() if len(report.devices) >= ranks}
        found = [
            Finding(
                "devices",
                "failed",
                f"has {count} GPUs that Ray does not offer; start Ray with them, or set run.device=cpu",
                node,
            )
            for node, count in unused.items()
            if is_auto
        ]
        return found or [Finding("devices", "ok", "this run uses CPUs")]
    found = []
    kinds = Counter(device["name"] for report in reports.values() for device in report.devices)
    usual = kinds.most_common(1)[0][0] if kinds else ""
    for node, report in reports.items():
        if len(report.devices) < ranks:
            message = f"has {len(report.devices)} GPUs for {ranks} ranks (nvidia-smi)"
            found.append(Finding("devices", "failed", message, node))
        for index, device in enumerate(report.devices[:ranks]):
            if device["name"] != usual:
                message = f"GPU {index} is a {device['name']}, others are {usual}"
                found.append(Finding("devices", "warning", message, node))
            if device["free"] < _DEVICE_SHARE * device["total"]:
                message = f"GPU {index} is in use: {_size(device['free'])} of {_size(device['total'])} are free"
                found.append(Finding("devices", "warning", message, node))
    return found or [Finding("devices", "ok", f"{ranks} {usual} on each node")]


def room(reports: Mapping[str, NodeReport]) -> list[Finding]:
    """Free memory, and free disk space for the run directory."""
    found = []
    for node, report in reports.items():
        if report.memory is not None and report.memory < _MEMORY_BYTES:
            found.append(Finding("memory", "warning", f"only {_size(report.memory)} free", node))
        if report.disk is not None and report.disk < _DISK_BYTES:
            message = f"only {_size(report.disk)} free for the run directory"
            found.append(Finding("disk", "warning", message, node))
    disks = [report.disk for report in reports.values() if report.disk is not None]
    return found or [Finding("disk", "ok", f"{_size(min(disks, default=0))} free for the run directory")]


def storage(reports: Mapping[str, NodeReport], unseen: Mapping[str, Sequence[str]], folder: str) -> list[Finding]:
    """Report nodes that cannot write to the folder, or do not share it.

    Args:
        reports: by node.
        unseen: for each node, the nodes whose file in `folder` it did not find (`the launcher` is one of them).
        folder: where all nodes wrote a file.
    """
    found = [
        Finding("shared storage", "failed", f"cannot write to {folder}: {report.problem}", node)
        for node, report in reports.items()
        if report.problem
    ]
    writers = {node for node, report in reports.items() if not report.problem} | {LAUNCHER}
    blind: dict[str, int] = {}
    for node, missed in unseen.items():
        count = len(set(missed) & (writers - {node}))
        if count:
            blind[node] = count
    # A node with its own, unshared folder misses every other node's file; the others miss only that node's.
    most = max(blind.values(), default=0)
    for node, count in blind.items():
        if count == most and not reports[node].problem:
            message = f"does not see what the others write to {folder}: it is not on shared storage on this node"
            found.append(Finding("shared storage", "failed", message, node))
    can = "read each other's files in" if len(reports) > 1 else "can write and read"
    return found or [Finding("shared storage", "ok", f"{_nodes(len(reports))} {can} {folder}")]


LAUNCHER = "the launcher"


def clocks(skews: Mapping[str, tuple[float, float]]) -> list[Finding]:
    """Report clocks that differ too much.

    Args:
        skews: by node, the seconds that its clock is ahead of the launcher's, and the uncertainty of that.
    """
    found = [
        Finding("clock", "failed", f"its clock is {abs(skew):.1f} s {'ahead' if skew > 0 else 'behind'}", node)
        for node, (skew, uncertain) in skews.items()
        if abs(skew) > _CLOCK_SECONDS + uncertain
    ]
    worst = max((abs(skew) + uncertain for skew, uncertain in skews.values()), default=0.0)
    return found or [Finding("clock", "ok", f"within {worst:.2f} s")]


def _nodes(count: int) -> str:
    return f"{count} node{'s' if count != 1 else ''}"


def _size(count: float) -> str:
    return f"{count / 2**30:.1f} GiB"
