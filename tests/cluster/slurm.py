"""A Slurm of two nodes on this machine, without systemd and without touching the one that may be installed.

Needs root and the Debian packages slurmctld, slurmd, slurm-client and munge, which
`make -C tests/cluster slurm` installs.
"""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged")

_CONF = """\
ClusterName=brt
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerParameters=bf_interval=1,sched_interval=1
ReturnToService=2
KillWait=60
MpiDefault=none
NodeName=n0 NodeHostname={host} NodeAddr=127.0.0.1 Port={first} CPUs=2
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={second} CPUs=2
PartitionName=short Nodes=n0,n1 Default=YES MaxTime=INFINITE State=UP
"""


@contextmanager
def slurm(folder: Path) -> Iterator[dict[str, str]]:
    """Start it; yields the environment variables with which sbatch and other commands reach it."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        raise RuntimeError(f"not installed: {', '.join(missing)} (Debian: slurmctld slurmd slurm-client munge)")
    processes: list[subprocess.Popen[bytes]] = []
    conf, munge = folder / "slurm.conf", folder / "munge"
    munge.mkdir(mode=0o755)
    (folder / "state").mkdir()
    ports = dict(zip(("port", "first", "second"), _free_ports(3), strict=True))
    conf.write_text(_CONF.format(host=socket.gethostname(), folder=folder, **ports))
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nCgroupAutomount=yes\n")
    key = munge / "key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    variables = {"SLURM_CONF": str(conf)}
    files = [f"--{name}-file={munge / name}" for name in ("key", "pid", "log", "seed")]
    try:
        daemons = [
            ["munged", "--foreground", "--force", f"--socket={munge}/socket", *files],
            ["slurmctld", "-D", "-i"],
            ["slurmd", "-D", "-N", "n0"],
            ["slurmd", "-D", "-N", "n1"],
        ]
        for number, command in enumerate(daemons):
            with open(folder / f"daemon_{number}.out", "wb") as output:
                processes.append(
                    subprocess.Popen(command, env={**os.environ, **variables}, stdout=output, stderr=output)
                )
            if number == 0:
                _wait_for((munge / "socket").exists, "munged", folder)
        _wait_for(lambda: idle_nodes(variables) == 2, "two idle nodes", folder)
        yield variables
    finally:
        # Jobs outlive their Slurm otherwise.
        subprocess.run(["scancel", "--user=root"], env={**os.environ, **variables}, check=False, capture_output=True)
        deadline = time.monotonic() + 90
        while _jobs(variables) and time.monotonic() < deadline:
            time.sleep(1)
        for process in reversed(processes):
            process.terminate()
        for process in processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def idle_nodes(variables: dict[str, str]) -> int:
    command = ["sinfo", "--noheader", "--Node", "--format=%N %T"]
    done = subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True, check=False)
    return sum(line.split()[-1] == "idle" for line in done.stdout.splitlines())


def _jobs(variables: dict[str, str]) -> list[str]:
    done = subprocess.run(
        ["squeue", "--noheader"], env={**os.environ, **variables}, capture_output=True, text=True, check=False
    )
    return done.stdout.splitlines()


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def _wait_for(condition, what: str, folder: Path) -> None:  # type: ignore[no-untyped-def]
    deadline = time.monotonic() + 120
    while not condition():
        if time.monotonic() > deadline:
            logs = "\n".join(
                f"{path.name}: {path.read_text(errors='replace')[-500:]}"
                for path in (*sorted(folder.glob("*.out")), *sorted(folder.glob("*.log")))
            )
            raise RuntimeError(f"waited in vain for {what}\n{logs}")
        time.sleep(0.2)
