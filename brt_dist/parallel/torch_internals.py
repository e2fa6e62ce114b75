"""Everything that we use of torch and that it does not document.  No other file may; see deepspeed_internals."""

from datetime import timedelta


def set_timeout_of_all_groups(seconds: float) -> None:
    """From now on a collective of any process group of this rank fails after `seconds`."""
    from torch.distributed import distributed_c10d

    for group in [*distributed_c10d._world.pg_map]:
        distributed_c10d._set_pg_timeout(timedelta(seconds=seconds), group)
