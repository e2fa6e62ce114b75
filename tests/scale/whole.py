"""Every rank of a layout: each kind of rank is built and makes a step; the others do the same in other groups."""

from collections.abc import Callable
from dataclasses import replace
from itertools import product

from brt_dist.config.schema import Config
from brt_dist.parallel.layout import Layout
from tests.scale.meta import meta_world
from tests.scale.recorder import Collective
from tests.scale.world import axes, fake_world


def with_micro_batches(config: Config, count: int) -> Config:
    """The same layout with `count` micro-batches a step: each makes the same calls."""
    streams = config.parallel.data * config.parallel.micro_batch * count
    return config.model_copy(update={"data": config.data.model_copy(update={"streams": streams})})


def kind_of(layout: Layout) -> int:
    """The rank that stands for a rank: of the same stage, and first or last where it is.

    The vocabulary is padded on the last tensor parallel rank, and ZeRO pads on the last data parallel one.
    """
    tensor = 0 if layout.tensor_rank < layout.tensor - 1 else layout.tensor - 1
    data = 0 if layout.data_rank < layout.data - 1 else layout.data - 1
    return _rank(layout, layout.stage, data, tensor)


def kinds(config: Config) -> list[int]:
    """The ranks that stand for all."""
    first = Layout.of(config, 0)
    ends = [{0, size - 1} for size in (first.data, first.tensor)]
    return sorted(_rank(first, stage, *place) for stage in range(first.pipeline) for place in product(*ends))


def traces(
    config: Config, told: Callable[[str], None] = lambda text: None, everyone: bool = False
) -> dict[int, list[Collective]]:
    """What every rank of the world calls, from the building of its engine to the end of a step.

    Args:
        told: called with what was built.
        everyone: build every rank; else one of each kind, which stands for the others.
    """
    made = {}
    for rank in range(config.parallel.world_size) if everyone else kinds(config):
        # ZeRO-3 copies weights when it partitions them, and needs values
        alone = fake_world if config.parallel.zero_stage == 3 else meta_world
        with alone(config, rank) as world, world.recorder() as recorder, world.engine() as engine:
            world.recorded_step(engine, recorder, 1)
        made[rank] = recorder.collectives
        told(f"rank {rank} of {config.parallel.world_size}: {len(recorder.collectives)} calls")
    if everyone:
        return made
    layouts = [Layout.of(config, rank) for rank in range(config.parallel.world_size)]
    return {layout.rank: [_moved(call, layout) for call in made[kind_of(layout)]] for layout in layouts}


def _moved(call: Collective, layout: Layout) -> Collective:
    """A call as the rank of `layout` makes it, by what another of its kind has made."""
    if call.peer is not None:
        stage = replace(layout, rank=call.peer).stage
        return replace(call, peer=_rank(layout, stage, layout.data_rank, layout.tensor_rank))
    members = range(layout.world_size) if call.group == "world" else axes(layout)[call.group]
    return replace(call, members=tuple(members))


def _rank(layout: Layout, stage: int, data: int, tensor: int) -> int:
    return (stage * layout.data + data) * layout.tensor + tensor
