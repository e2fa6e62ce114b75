"""Ranks meet on the address of rank 0, and listen on no other."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ports import free_port

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
RANK = """
import json, os, sys
import psutil
from brt_dist.parallel.device import choose
device = choose("cpu", 0)
from brt_dist.parallel.layout import Layout, agree, finalize, initialize
rank = int(os.environ["RANK"])
initialize(Layout(tensor=1, pipeline=1, data=2, micro_batch=1, streams=2, rank=rank), device, 60.0)
largest = agree((rank,), device)[0]
listening = [c.laddr.ip for c in psutil.Process().net_connections() if c.status == psutil.CONN_LISTEN]
agree((0.0,), device)  # nobody leaves before all have looked
finalize()
print(json.dumps([largest, listening]))
"""


@pytest.mark.parametrize("host", ["127.0.0.2", "localhost"])
def test_ranks_meet_and_listen_where_they_should(host: str) -> None:
    """Given an address, it listens only there; given a name, torch resolves it and listens everywhere."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "WORLD_SIZE": "2", "MASTER_ADDR": host, "LOCAL_RANK": "0"}
    environment |= {"MASTER_PORT": str(free_port()), "GLOO_SOCKET_IFNAME": "lo"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", RANK],
            env={**environment, "RANK": str(rank)},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    found = [json.loads(rank.communicate(timeout=180)[0].splitlines()[-1]) for rank in ranks]
    assert [largest for largest, _ in found] == [1.0, 1.0]
    listening = {address for _, addresses in found for address in addresses}
    assert (listening <= {"127.0.0.1", host, "::1"}) == (host == "127.0.0.2"), listening
    assert host == "localhost" or host in listening
