"""Everything that we use of Megatron and that it does not document.  No other file may; see deepspeed_internals."""

from collections.abc import Iterator
from typing import Any


def collectives() -> Iterator[tuple[Any, str]]:
    """Owner and name of the copies that Megatron keeps of torch's collectives."""
    from megatron.core.tensor_parallel import layers, mappings

    return iter(
        (
            (layers, "dist_all_gather_func"),
            (layers, "dist_reduce_scatter_func"),
            (mappings, "dist_all_gather_func"),
            (mappings, "dist_reduce_scatter_func"),
        )
    )
