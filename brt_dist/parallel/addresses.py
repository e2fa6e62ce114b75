"""The address at which ranks on other nodes reach this node, and the interface."""

import os
import socket


def address_of_node() -> str:
    """This node's address, at which the ranks on other nodes reach it.

    The address of the interface in GLOO_SOCKET_IFNAME if it is set; else the one from which packets to rank 0
    (MASTER_ADDR) leave; without either, the world has one node and it is the loopback.
    """
    interface, first = os.environ.get("GLOO_SOCKET_IFNAME"), os.environ.get("MASTER_ADDR")
    for name, host in _addresses() if interface else ():
        if name == interface:
            return host
    if not first:
        return "127.0.0.1"
    family, _, _, _, place = socket.getaddrinfo(first, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(place)  # sends nothing
        return str(probe.getsockname()[0])


def let_gloo_follow() -> None:
    """Make gloo use the interface of that address, unless GLOO_SOCKET_IFNAME names one.

    By default it takes the one that the host name resolves to, which other nodes may not reach.
    """
    if "GLOO_SOCKET_IFNAME" in os.environ or "MASTER_ADDR" not in os.environ:
        return
    address = address_of_node()
    for name, host in _addresses():
        if host == address:
            os.environ["GLOO_SOCKET_IFNAME"] = name
            return


def _addresses() -> list[tuple[str, str]]:
    """All interfaces and addresses of this node; IPv4 first."""
    import psutil

    found = [
        (entry.family == socket.AF_INET6, name, str(entry.address))
        for name, entries in psutil.net_if_addrs().items()
        for entry in entries
        if entry.family in (socket.AF_INET, socket.AF_INET6) and "%" not in entry.address  # link-local
    ]
    return [(name, host) for _, name, host in sorted(found, key=lambda item: item[0])]
