"""Checks of all nodes before ranks start there: the quick ones of `brt train`, and an all-reduce."""

import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brt_dist.config.schema import Config
from brt_dist.errors import LaunchError, PlatformError
from brt_dist.reading import read_json
from launch.doctor import findings
from launch.doctor.findings import LAUNCHER, Finding
from launch.run.python import module_command

if TYPE_CHECKING:
    from launch.nodes.gang import Gang

_ALL_REDUCE_SECONDS = 60.0
_ALL_REDUCE_SECONDS_PER_NODE = 0.25  # rank 0 answers each of them in turn
_REPORT_SECONDS = 60.0  # nvidia-smi and git, on a busy node
_WATCHED = 8  # each node looks for the files of this many nodes in the shared folder


def preflight(gang: "Gang", config: Config, folder: Path) -> list[Finding]:
    """The quick checks: versions, devices, storage, disk, clocks, and the address of rank 0.

    Args:
        gang: the agents of all nodes.
        config: of the run.
        folder: where all nodes must be able to write (the run directory).  A temporary folder is created there.
    """
    with scratch_folder(folder) as place:
        return quick(gang, config, place)


def refuse(found: list[Finding]) -> None:
    """Raise if a check failed.

    Raises:
        PlatformError: names every node with a problem.
    """
    failed = [finding for finding in found if finding.status == "failed"]
    if failed:
        lines = "\n".join(f"  - {line(finding)}" for finding in failed)
        raise PlatformError(
            f"the nodes are not ready:\n{lines}\n"
            "run brt doctor to check again; launch.preflight=false skips these checks"
        )


def line(finding: Finding) -> str:
    where = f"{finding.node}: " if finding.node else ""
    return f"{finding.check}: {where}{finding.message}"


def quick(gang: "Gang", config: Config, place: Path) -> list[Finding]:
    """`preflight` in a folder that exists."""
    names = _names(gang)
    (place / LAUNCHER).write_text(LAUNCHER)
    begin = time.time()
    clocks = gang.ask_all("clock")
    end = time.time()
    skews = {name: (clock - end, end - begin) for name, clock in zip(names, clocks, strict=True)}
    reports = dict(
        zip(names, gang.ask_each("report", [(str(place), name) for name in names], _REPORT_SECONDS), strict=True)
    )
    marks = [(str(place), _watched(index, names)) for index in range(len(names))]
    unseen = dict(zip(names, gang.ask_each("unseen", marks), strict=True))
    ranks = config.parallel.world_size // config.launch.nodes
    found = findings.versions(reports)
    found += findings.devices(reports, ranks, gang.device.kind == "cuda", config.run.device == "auto")
    found += findings.storage(reports, unseen, str(place.parent)) + findings.room(reports) + findings.clocks(skews)
    return found + list(_rank_zero(gang, names))


def _watched(index: int, names: list[str]) -> list[str]:
    """The marks that a node looks for: the launcher's and those of the next nodes, so that N nodes read 9 N in all."""
    after = [names[(index + offset) % len(names)] for offset in range(min(_WATCHED, len(names) - 1) + 1)]
    return [*after, LAUNCHER]


def all_reduce_seconds(nodes: int) -> float:
    """How long the all-reduce and its rendezvous may take on this many nodes."""
    return _ALL_REDUCE_SECONDS + _ALL_REDUCE_SECONDS_PER_NODE * nodes


def all_reduce(gang: "Gang", config: Config, place: Path) -> Finding:
    """Time an all-reduce over as many ranks as the run will have; takes at most `all_reduce_seconds`."""
    seconds = all_reduce_seconds(config.launch.nodes)
    folder = place / "all-reduce"
    folder.mkdir()
    world, local = config.parallel.world_size, config.parallel.world_size // config.launch.nodes
    kind = gang.device.kind
    gang.start(tuple(module_command("launch.doctor.allreduce", str(folder), kind, str(seconds))), Path.cwd(), folder)
    deadline = time.monotonic() + seconds
    ends: dict[int, Any] = {}
    while len(ends) < world and time.monotonic() < deadline and all(end.code == 0 for end in ends.values()):
        time.sleep(0.1)
        ends = gang.ended()
    if (folder / "result.json").is_file():
        result = read_json(folder / "result.json")
        if world == 1:
            return Finding("all-reduce", "ok", f"only one rank ({kind}), so there is nothing to exchange")
        speed, size = f"{result['bytes_per_second'] / 1e9:.2f} GB/s", f"{result['bytes'] >> 20} MiB"
        message = f"{world} ranks ({kind}), {size} in {result['seconds'] * 1e3:.1f} ms, {speed}"
        return Finding("all-reduce", "ok", message)
    gang.kill()
    names = _names(gang)
    failed = sorted(rank for rank, end in ends.items() if end.code != 0 and not end.told)
    if failed:
        rank = failed[0]
        said = (folder / f"rank_{rank:03d}.log").read_text(errors="replace").strip().splitlines()[-1:] or ["nothing"]
        return Finding("all-reduce", "failed", f"rank {rank} failed: {said[0]}", names[rank // local])
    for phase, what in (("began", "did not start"), ("met", "did not reach the rendezvous")):
        missing = [rank for rank in range(world) if not (folder / f"{rank}.{phase}").is_file()]
        if missing and len(missing) < world:
            nodes = sorted({names[rank // local] for rank in missing})
            return Finding("all-reduce", "failed", f"rank {missing[0]} {what} within {seconds:g} s", ", ".join(nodes))
        if missing:
            return Finding("all-reduce", "failed", f"all ranks {what} within {seconds:g} s")
    return Finding("all-reduce", "failed", f"all ranks started, but their all-reduce took more than {seconds:g} s")


@contextmanager
def scratch_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder for all nodes, in the nearest existing parent of `folder`."""
    while not folder.is_dir():
        folder = folder.parent
    place = folder / f".brt-doctor-{secrets.token_hex(4)}"
    try:
        place.mkdir()
    except OSError as error:
        raise PlatformError(f"cannot write in {folder}: {error.strerror}") from None
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _rank_zero(gang: "Gang", names: list[str]) -> Iterator[Finding]:
    """Check that the address of rank 0 belongs to its node, and that all other nodes can connect to it."""
    address = gang.nodes[0].address
    try:
        port = gang.ask(0, "listen", address, max(len(names), 64))
    except LaunchError as error:
        yield Finding("address of rank 0", "failed", f"{address} is not an address of this node ({error})", names[0])
        return
    problems = gang.ask_all("reach", address, port)
    for name, problem in zip(names, problems, strict=True):
        if problem is not None:
            yield Finding("ports", "failed", f"cannot connect to rank 0 at {address}:{port}: {problem}", name)
    if not any(problems):
        yield Finding("address of rank 0", "ok", f"all nodes connect to {address}")


def _names(gang: "Gang") -> list[str]:
    """Host names, with the address if several nodes have the same one."""
    hosts = [node.host for node in gang.nodes]
    return [
        host if hosts.count(host) == 1 else f"{host} (node {index}, {node.address})"
        for index, (host, node) in enumerate(zip(hosts, gang.nodes, strict=True))
    ]
