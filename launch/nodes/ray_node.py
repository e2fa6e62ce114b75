"""A node of a Ray cluster that lives as long as this process: `python -m launch.nodes.ray_node FOLDER --node K`.

Node 0 is the head: it picks a free port on its own address and writes HOST:PORT to FOLDER/head once it answers; the
others wait for that.  All nodes need the token in FOLDER/token, which the head creates, readable by its owner only.
The nodes find each other through FOLDER alone, so it must be on shared storage.

Everything listens only on the node's address on the given interface, else on that of its host name (see listening.py).
`ray stop` would stop other people's Ray too, so this process stops only its own, through the reaper above it.
"""

import argparse
import os
import secrets
import signal
import socket
import sys
import time
from pathlib import Path
from types import FrameType

from brt_dist.errors import BrtError, ExitCode, PlatformError
from brt_dist.files import temporary_name, write_atomic
from launch.nodes.listening import listening_on
from launch.nodes.processes import ProcessSet, ProcessSpec
from launch.run.python import module_command
from pipelines.cluster import available_cores, quiet

_OBJECT_STORE_BYTES = 100 << 20


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m launch.nodes.ray_node")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--node", type=int, required=True)
    parser.add_argument("--interface", help="network interface between the nodes")
    parser.add_argument(
        "--listen",
        choices=("address", "all"),
        default="address",
        help="what Ray listens on; all: every interface (needs no C compiler)",
    )
    parser.add_argument("--gpus", type=int, help="GPUs that Ray offers; unset: all that Ray finds")
    parser.add_argument("--dashboard", action="store_true", help="the head also accepts jobs")
    parser.add_argument("--dashboard-port", type=int, default=8265)
    parser.add_argument("--patience", type=float, default=300.0, help="seconds until the node must be up")
    options = parser.parse_args(arguments)
    try:
        return _run(options)
    except BrtError as error:
        print(f"error: {error}", file=sys.stderr)
        return int(error.exit_code)


def own_address(interface: str | None) -> str:
    """IPv4 address of this machine on `interface`, else of its host name.

    Raises:
        PlatformError: there is none.
    """
    if interface is not None:
        import fcntl
        import struct

        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                answer = fcntl.ioctl(
                    probe.fileno(), 0x8915, struct.pack("256s", interface.encode()[:15])
                )  # SIOCGIFADDR
            except OSError:
                known = ", ".join(name for _, name in socket.if_nameindex())
                raise PlatformError(
                    f"{socket.gethostname()} has no IPv4 address on interface {interface}; it has {known}"
                ) from None
        return socket.inet_ntoa(answer[20:24])
    try:
        address = socket.gethostbyname(socket.gethostname())
    except OSError:
        address = ""
    if address and not address.startswith("127."):
        return address
    # Debian maps the host name to a loopback address; use the address of the default route then.  Nothing is sent.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
            return str(probe.getsockname()[0])
        except OSError:
            if address:
                return address
    raise PlatformError(f"the host name {socket.gethostname()} has no address; name a network interface instead")


def token_environment(folder: Path) -> dict[str, str]:
    """Variables for every process of the cluster in `folder`."""
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / "token"), **quiet()}


def _run(options: argparse.Namespace) -> int:
    folder, address = options.folder.absolute(), own_address(options.interface)
    is_head = options.node == 0
    if is_head:
        folder.mkdir(parents=True, exist_ok=True)
        _write_token(folder / "token")
        (folder / "head").unlink(missing_ok=True)
    environment = {**os.environ, **token_environment(folder), "RAY_ADDRESS": "", "PYTHONUNBUFFERED": "1"}
    if options.interface is not None:
        environment["GLOO_SOCKET_IFNAME"] = environment["NCCL_SOCKET_IFNAME"] = options.interface
    if options.listen == "address":
        environment = _listening_on(address, environment)
    signal.signal(signal.SIGTERM, _leave)
    signal.signal(signal.SIGINT, _leave)
    log = folder / f"ray_{options.node:03d}.log"
    node = ProcessSet()
    try:
        while True:
            node = _up(options, address, environment, log)
            while not node.ended():
                time.sleep(0.2)
            node.kill()
            if is_head:
                break
            # The head gave up this node, for example after a network failure; Ray accepts it again as a new one.
            print(f"Ray on {address} exited (see {log}); joining again", file=sys.stderr, flush=True)
    except _Left:
        return 0
    finally:
        node.kill()
    print(f"error: Ray on {address} exited; see {log}", file=sys.stderr)
    return int(ExitCode.LOST_NODE)


def _listening_on(address: str, environment: dict[str, str]) -> dict[str, str]:
    try:
        return listening_on(address, environment)
    except PlatformError as error:
        raise PlatformError(
            f"{error}; Ray would listen on all interfaces.  Nearest: --listen all (launch.slurm.listen=all) behind a "
            "firewall"
        ) from None


def _up(options: argparse.Namespace, address: str, environment: dict[str, str], log: Path) -> ProcessSet:
    """Start Ray on this node and wait until it answers.

    Raises:
        PlatformError: it did not within `options.patience` seconds.
    """
    folder, is_head = options.folder.absolute(), options.node == 0
    deadline = time.monotonic() + options.patience
    while True:
        head = f"{address}:{_free_port(address)}" if is_head else _wait_for_head(folder, options.patience)
        begin = log.stat().st_size if log.exists() else 0
        node = ProcessSet()
        try:
            node.start([ProcessSpec(0, tuple(_ray_start(options, address, head)), environment, Path.cwd(), log)])
            if _started(node, log, begin, deadline):
                if is_head:
                    write_atomic(folder / "head", head)
                return node
        except BaseException:
            node.kill()
            raise
        # Ray gives a node 30 seconds to come up, which may be too little on a busy machine.
        node.kill()
        if time.monotonic() > deadline:
            raise PlatformError(f"{socket.gethostname()}: Ray did not start; see {log}")


def _ray_start(options: argparse.Namespace, address: str, head: str) -> list[str]:
    """`ray start` for this node; head: HOST:PORT of node 0."""
    command = module_command("ray.scripts.scripts", "start", "--block", f"--node-ip-address={address}")
    command += [f"--num-cpus={available_cores()}", "--disable-usage-stats"]
    command += [f"--num-gpus={options.gpus}"] if options.gpus is not None else []
    command += [f"--object-store-memory={_OBJECT_STORE_BYTES}"]
    if options.node:
        return [*command, f"--address={head}"]
    command += ["--head", f"--port={head.rpartition(':')[2]}", f"--include-dashboard={options.dashboard}"]
    return [*command, f"--dashboard-host={address}", f"--dashboard-port={options.dashboard_port}"]


class _Left(Exception):
    """This node was asked to leave."""


def _leave(number: int, frame: FrameType | None) -> None:
    raise _Left


def _write_token(path: Path) -> None:
    new = temporary_name(path)
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secrets.token_hex(32))
    os.replace(new, path)


def _free_port(address: str) -> int:
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


def _wait_for_head(folder: Path, patience: float) -> str:
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        try:
            return (folder / "head").read_text().strip()
        except FileNotFoundError:
            time.sleep(0.2)
    raise PlatformError(f"{socket.gethostname()}: no head in {folder} after {patience:g} s; is it on shared storage?")


def _started(node: ProcessSet, log: Path, begin: int, deadline: float) -> bool:
    """Whether `log` says so after its first `begin` bytes; false if Ray exited or the time is up."""
    while not node.ended() and time.monotonic() < deadline:
        with open(log, "rb") as file:
            file.seek(begin)
            if b"Ray runtime started" in file.read():
                return True
        time.sleep(0.2)
    return False


if __name__ == "__main__":
    sys.exit(main())
