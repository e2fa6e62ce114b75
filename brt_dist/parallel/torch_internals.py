"""All undocumented parts of torch that we use.  No other file may use any; see deepspeed_internals."""

from datetime import timedelta
from typing import Any


def set_timeout_of_all_groups(seconds: float) -> None:
    """From now on a collective of any process group of this rank fails after `seconds`."""
    from torch.distributed import distributed_c10d

    for group in [*distributed_c10d._world.pg_map]:
        distributed_c10d._set_pg_timeout(timedelta(seconds=seconds), group)


def store_of_nobody() -> Any:
    """A store for process groups of backend "fake", which a single process can create and which move no data."""
    from torch.testing._internal.distributed.fake_pg import FakeStore  # importing it registers the backend

    return FakeStore()
