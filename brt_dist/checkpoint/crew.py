"""The ranks that save checkpoints together: what a rank needs to know about the others, and how they agree.

A file holds tensors of one pipeline stage, so only the ranks of a stage tell each other what they hold and send each
other pieces.  What the whole run must agree on (whether all files are written, then whether the checkpoint is
published) goes up a tree to rank 0 and down again.  So a rank has only a few connections, however many ranks there are.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

import torch.distributed as dist
from megatron.core import parallel_state

from brt_dist.parallel.addresses import address_of_node
from brt_dist.parallel.layout import Layout
from brt_dist.parallel.links import Links

_CHILDREN = 16  # children of a rank in the tree of its stage


def parent_of(layout: Layout) -> int | None:
    """The rank above this one in the tree; None for rank 0."""
    size = layout.tensor * layout.data
    first, place = layout.stage * size, layout.rank - layout.stage * size
    if place:
        return first + (place - 1) // _CHILDREN
    return 0 if layout.rank else None


def children_of(layout: Layout) -> list[int]:
    """The ranks below this one in the tree, in ascending order."""
    size = layout.tensor * layout.data
    first, place = layout.stage * size, layout.rank - layout.stage * size
    below = range(place * _CHILDREN + 1, min((place + 1) * _CHILDREN + 1, size))
    heads = range(size, size * layout.pipeline, size) if layout.rank == 0 else range(0)
    return [*(first + other for other in below), *heads]


class Crew:
    """This rank among those that save together.

    Making one is collective.

    Args:
        layout: of this rank.
        seconds: how long to wait for another rank.

    Attributes:
        rank: this rank.
        ranks: those of its stage.
        links: to other ranks.
    """

    def __init__(self, layout: Layout, seconds: float) -> None:
        self.rank = layout.rank
        self._parent, self._children = parent_of(layout), children_of(layout)
        size = layout.tensor * layout.data
        self.ranks = range(layout.stage * size, (layout.stage + 1) * size)
        self.links = Links(self.rank, seconds, address_of_node())
        mine = (self.rank, self.links.address)
        self.links.meet(dict(self.gather(mine)))
        if layout.pipeline > 1:  # the first ranks of the stages are one of these groups
            self.links.meet(dict(_gathered(mine, parallel_state.get_pipeline_model_parallel_group())))

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks of the stage, in order.  Collective within the stage, on training's thread."""
        if len(self.ranks) == 1:
            return [value]
        return _gathered(value, parallel_state.get_tensor_and_data_parallel_group())

    def up(self, values: Sequence[Any]) -> list[Any] | None:
        """Bring values of all ranks to rank 0.  Collective.

        Args:
            values: this rank's, as JSON values.

        Returns:
            On rank 0 the values of all ranks; on the others None.
        """
        found = list(values)
        for child in self._children:
            found += json.loads(self.links.receive_text(child))
        if self._parent is None:
            return found
        self.links.send_text(json.dumps(found), self._parent)
        return None

    def down(self, value: Any) -> Any:
        """Bring a value of rank 0 to all ranks.  Collective."""
        if self._parent is not None:
            value = json.loads(self.links.receive_text(self._parent))
        text = json.dumps(value)
        for child in self._children:
            self.links.send_text(text, child)
        return value

    def on_first_rank(self, action: Callable[[], Any]) -> Any:
        """Do something on rank 0; all ranks get what it returns.  Collective."""
        return self.down(action() if self._parent is None else None)

    def close(self) -> None:
        """Close all connections."""
        self.links.close()


def _gathered(value: Any, group: dist.ProcessGroup) -> list[Any]:
    values: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(values, value, group)
    return values
