"""Joins the other ranks of a run, from a user's script."""

import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist

from brt_dist.config.schema import Config
from brt_dist.errors import ConfigError
from brt_dist.parallel.device import Device, choose
from brt_dist.parallel.device_choice import DeviceChoice, NodeDevices, agree_on_device, device_for_all
from brt_dist.parallel.layout import Layout, finalize, initialize, meet


@contextmanager
def joined(config: Config) -> Iterator[tuple[Layout, Device]]:
    """Make this process a rank of the layout in `config`, until the block ends.

    Under torchrun, or anything that sets RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT as torchrun does,
    it meets the other ranks.  Without them it is a world of one.  Call this before DeepSpeed is imported, which picks
    its accelerator at import (`brt_dist.parallel.engine` imports it).

    Yields:
        The layout with this rank's place in it, and this rank's device.

    Raises:
        ConfigError: another number of processes was started than the layout needs.
        PlatformError: run.device=cuda, and this rank has no GPU; or run.device=auto, and only some ranks have one.
    """
    alone = "RANK" not in os.environ
    if alone and config.parallel.world_size > 1:
        raise ConfigError(
            f"the layout needs {config.parallel.world_size} processes and this is one alone; start the script with "
            f"torchrun --nproc-per-node {config.parallel.world_size}"
        )
    layout, seconds = Layout.of(config, int(os.environ.get("RANK", "0"))), config.launch.start_seconds
    with ExitStack() as stack:
        if alone:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            store: Any = dist.FileStore(str(Path(folder) / "store"), 1)
        else:
            store = meet(layout, seconds)
        device, _ = device_of_rank(config.run.device, layout, int(os.environ.get("LOCAL_RANK", "0")), store)
        initialize(layout, device, seconds, store)
        yield layout, device
        finalize()  # not after an error: the other ranks may wait in a collective that never completes


def device_of_rank(wanted: str, layout: Layout, local_rank: int, store: Any) -> tuple[Device, DeviceChoice]:
    """This rank's device, of the kind that all ranks use, and why that kind.  Collective if `wanted` is "auto".

    Args:
        wanted: run.device.
        layout: of this rank.
        local_rank: number of this rank on its node.
        store: that all ranks have joined.

    Raises:
        PlatformError: this rank has no GPU; or the ranks disagree.
    """
    if wanted == "auto":
        choice = agree_on_device(wanted, layout.rank, layout.world_size, local_rank, store)
    else:
        choice = device_for_all(wanted, [NodeDevices(socket.gethostname(), 0, 0)])
    return choose(choice.kind, local_rank), choice
