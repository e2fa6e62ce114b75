"""Checks of all nodes before ranks start there: the quick ones of `brt train`, and an all-reduce."""

import json
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brt_dist.config.schema import Config
from brt_dist.errors import LaunchError, PlatformError
from launch.doctor import findings
from launch.doctor.findings import LAUNCHER, Finding
from launch.doctor.node import NodeReport
from launch.run.python import module_command

if TYPE_CHECKING:
    from launch.nodes.gang import Gang

ALL_REDUCE_SECONDS = 60.0


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
    reports: dict[str, NodeReport] = {}
    skews: dict[str, tuple[float, float]] = {}
    for index, name in enumerate(names):
        begin = time.time()
        report: NodeReport = gang.ask(index, "report", str(place), name)
        end = time.time()
        reports[name] = report
        # The report reads its clock near the end of the call.
        skews[name] = (report.time - end, end - begin)
    marks = [*names, LAUNCHER]
    unseen = {name: list(gang.ask(index, "unseen", str(place), marks)) for index, name in enumerate(names)}
    ranks = config.parallel.world_size // config.launch.nodes
    found = findings.versions(reports)
    found += findings.devices(reports, ranks, gang.has_gpus)
    found += findings.storage(reports, unseen, str(place.parent)) + findings.room(reports) + findings.clocks(skews)
    return found + list(_rank_zero(gang, names))


def all_reduce(gang: "Gang", config: Config, place: Path, seconds: float = ALL_REDUCE_SECONDS) -> Finding:
    """Time an all-reduce over as many ranks as the run will have; takes at most `seconds`."""
    folder = place / "all-reduce"
    folder.mkdir()
    world, local = config.parallel.world_size, config.parallel.world_size // config.launch.nodes
    kind = "cuda" if gang.has_gpus else "cpu"
    gang.start(tuple(module_command("launch.doctor.allreduce", str(folder), kind, str(seconds))), Path.cwd(), folder)
    deadline = time.monotonic() + seconds
    ends: dict[int, Any] = {}
    while len(ends) < world and time.monotonic() < deadline and all(end.code == 0 for end in ends.values()):
        time.sleep(0.1)
        ends = gang.ended()
    if (folder / "result.json").is_file():
        result = json.loads((folder / "result.json").read_text())
        speed = f"{result['bytes_per_second'] / 1e9:.2f} GB/s" if world > 1 else "no other rank"
        size = f"{result['bytes'] >> 20} MiB in {result['seconds'] * 1e3:.1f} ms"
        return Finding("all-reduce", "ok", f"{world} ranks ({kind}), {size}, {speed}")
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
    """The address under which rank 0 will be known belongs to its node, and all others can connect to it."""
    address = gang.nodes[0].address
    try:
        port = gang.ask(0, "listen", address)
    except LaunchError as error:
        yield Finding("address of rank 0", "failed", f"{address} is not an address of this node ({error})", names[0])
        return
    blocked = 0
    for index, name in enumerate(names):
        problem = gang.ask(index, "reach", address, port)
        if problem is not None:
            blocked += 1
            yield Finding("ports", "failed", f"cannot connect to rank 0 at {address}:{port}: {problem}", name)
    if not blocked:
        yield Finding("address of rank 0", "ok", f"all nodes connect to {address}")


def _names(gang: "Gang") -> list[str]:
    """Host names, with the address if several nodes have the same one."""
    hosts = [node.host for node in gang.nodes]
    return [
        host if hosts.count(host) == 1 else f"{host} (node {index}, {node.address})"
        for index, (host, node) in enumerate(zip(hosts, gang.nodes, strict=True))
    ]
