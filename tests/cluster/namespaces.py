"""Machines of a small network on this one: network namespaces, joined by a bridge.  Needs root and iproute2.

Each has its own address on the interface `node0`, and otherwise only its loopback interface.
"""

import ipaddress
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Machine:
    """A namespace; `address` is that of its interface `node0`."""

    namespace: str
    address: str

    def command(self, *words: str) -> list[str]:
        return ["ip", "netns", "exec", self.namespace, *words]

    def listening(self) -> dict[str, list[int]]:
        """By address, the TCP ports on which a process listens there; IPv4 in its usual form, in either family."""
        found: dict[str, list[int]] = {}
        for table in ("tcp", "tcp6"):
            command = self.command("cat", f"/proc/net/{table}")
            lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[1:]
            for place, state in ((line.split()[1], line.split()[3]) for line in lines):
                if state == "0A":
                    address, _, port = place.partition(":")
                    found.setdefault(_written(address), []).append(int(port, 16))
        return found

    def cable(self, state: str) -> None:
        """`down` cuts it off from the others, `up` joins it again."""
        _ip("netns", "exec", self.namespace, "ip", "link", "set", "node0", state)


def _written(address: str) -> str:
    """An address of /proc/net/tcp (32-bit words in the machine's byte order) as people write it."""
    words = [int(address[begin : begin + 8], 16).to_bytes(4, sys.byteorder) for begin in range(0, len(address), 8)]
    found = ipaddress.ip_address(b"".join(words))
    return str(getattr(found, "ipv4_mapped", None) or found)


@contextmanager
def machines(count: int) -> Iterator[list[Machine]]:
    """Make them; they are gone at the end.  subprocess.CalledProcessError: namespaces cannot be made here."""
    tag = f"brt{os.getpid()}"
    made = [Machine(f"{tag}-{number}", f"10.77.0.{number + 1}") for number in range(count)]
    try:
        _ip("netns", "add", f"{tag}-hub")
        _hub(tag, "link", "add", "hub", "type", "bridge")
        _hub(tag, "link", "set", "hub", "up")
        for number, machine in enumerate(made):
            name = machine.namespace
            _ip("netns", "add", name)
            _hub(tag, "link", "add", f"port{number}", "type", "veth", "peer", "name", "node0", "netns", name)
            _hub(tag, "link", "set", f"port{number}", "master", "hub", "up")
            _ip("-n", name, "addr", "add", f"{machine.address}/24", "dev", "node0")
            _ip("-n", name, "link", "set", "node0", "up")
            _ip("-n", name, "link", "set", "lo", "up")
        yield made
    finally:
        for name in [machine.namespace for machine in made] + [f"{tag}-hub"]:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def _hub(tag: str, *words: str) -> None:
    _ip("-n", f"{tag}-hub", *words)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)
