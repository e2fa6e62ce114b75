"""Rendezvous of the ranks: torch's store, which listens on the address of rank 0 only."""

import ipaddress
import os
import socket
from datetime import timedelta
from typing import Any

import torch.distributed as dist

_BACKLOG = 1024


def rendezvous_store(rank: int, world_size: int, timeout_seconds: float) -> Any:
    """The store at MASTER_ADDR and MASTER_PORT, which all ranks join.

    Torch's store listens on all interfaces.  Here rank 0 opens the port on MASTER_ADDR and passes it on.  That
    needs an IP address: a host name may resolve to a different one on its own machine than elsewhere.  Otherwise, and
    under torchrun, the store is torch's own.
    """
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" or not _is_address(host):
        return _store_of_torch(rank, world_size, timeout_seconds)
    listening = _listen(host, port, max(_BACKLOG, world_size)) if rank == 0 else None
    if rank == 0 and listening is None:
        return _store_of_torch(rank, world_size, timeout_seconds)
    return dist.TCPStore(
        host,
        port,
        world_size,
        is_master=rank == 0,
        timeout=timedelta(seconds=timeout_seconds),
        master_listen_fd=listening,
        multi_tenant=False,
    )


def _store_of_torch(rank: int, world_size: int, timeout_seconds: float) -> Any:
    """The store that `init_process_group` would create from the environment."""
    limit = timedelta(seconds=timeout_seconds)
    store, _, _ = next(dist.rendezvous("env://", rank, world_size, timeout=limit))
    store.set_timeout(limit)
    return store


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _listen(host: str, port: int, backlog: int) -> int | None:
    """A descriptor that listens there, for `backlog` connections at once.

    Returns:
        None if the address is not one of this machine (behind a NAT, for example).
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    probe = socket.socket(family, socket.SOCK_STREAM)
    try:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, port))
        probe.listen(backlog)
    except OSError:
        probe.close()
        return None
    return probe.detach()
