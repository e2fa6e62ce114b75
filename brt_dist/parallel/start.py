"""Join the other ranks of a run, in a script of one's own."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch.distributed as dist

from brt_dist.config.schema import Config
from brt_dist.errors import ConfigError
from brt_dist.parallel.device import Device, choose
from brt_dist.parallel.layout import Layout, finalize, initialize


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
        PlatformError: run.device=cuda, and this rank has no GPU.
    """
    alone = "RANK" not in os.environ
    if alone and config.parallel.world_size > 1:
        raise ConfigError(
            f"the layout needs {config.parallel.world_size} processes and this is one alone; start the script with "
            f"torchrun --nproc-per-node {config.parallel.world_size}"
        )
    layout = Layout.of(config, int(os.environ.get("RANK", "0")))
    device = choose(config.run.device, int(os.environ.get("LOCAL_RANK", "0")))
    with ExitStack() as stack:
        store = None
        if alone:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            store = dist.FileStore(str(Path(folder) / "store"), 1)
        initialize(layout, device, config.launch.start_timeout_seconds, store)
        yield layout, device
        finalize()  # not after an error: the other ranks may wait in a collective that never comes
