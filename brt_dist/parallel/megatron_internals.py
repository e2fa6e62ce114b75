"""All undocumented parts of Megatron that we use.  No other file may use any; see deepspeed_internals."""

from collections.abc import Iterator
from typing import Any


def collectives() -> Iterator[tuple[Any, str]]:
    """Owner and name of Megatron's own references to torch's collectives."""
    from megatron.core.tensor_parallel import layers, mappings

    return iter(
        (
            (layers, "dist_all_gather_func"),
            (layers, "dist_reduce_scatter_func"),
            (mappings, "dist_all_gather_func"),
            (mappings, "dist_reduce_scatter_func"),
        )
    )
