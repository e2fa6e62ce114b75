"""The layout of a run: which rank holds which part of the model, and which streams.

Ranks are numbered with tensor parallel fastest, then data, then pipeline: rank = (stage*dp + data)*tp + tensor.
Megatron (`order="tp-cp-ep-dp-pp"`) and DeepSpeed (`PipeModelDataParallelTopology`) both count this way;
:func:`initialize` checks on every rank that their groups are the same.
"""

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from brt_dist.config.schema import Config
from brt_dist.errors import ConfigError, PlatformError
from brt_dist.optim.base import Sharding
from brt_dist.parallel.addresses import let_gloo_follow
from brt_dist.parallel.deepspeed_internals import groups_on_axis, pipeline_topology
from brt_dist.parallel.device import Device, choose
from brt_dist.parallel.rendezvous import rendezvous_store
from brt_dist.parallel.torch_internals import set_timeout_of_all_groups


@dataclass(frozen=True)
class Layout:
    """The sizes of the three axes, and the position of one rank on them.

    Attributes:
        tensor: tensor parallel size.
        pipeline: number of pipeline stages.
        data: data parallel size.
        micro_batch: streams per micro-batch on each data parallel rank.
        streams: rows of the global batch [B].
        rank: global rank.
    """

    tensor: int
    pipeline: int
    data: int
    micro_batch: int
    streams: int
    rank: int

    @classmethod
    def of(cls, config: Config, rank: int) -> "Layout":
        parallel = config.parallel
        return cls(parallel.tensor, parallel.pipeline, parallel.data, parallel.micro_batch, config.data.streams, rank)

    @property
    def world_size(self) -> int:
        return self.tensor * self.pipeline * self.data

    @property
    def tensor_rank(self) -> int:
        return self.rank % self.tensor

    @property
    def data_rank(self) -> int:
        return self.rank // self.tensor % self.data

    @property
    def stage(self) -> int:
        return self.rank // (self.tensor * self.data)

    @property
    def is_first_stage(self) -> bool:
        return self.stage == 0

    @property
    def is_last_stage(self) -> bool:
        return self.stage == self.pipeline - 1

    @property
    def micro_batches(self) -> int:
        """Micro-batches per step, the same on every rank; the last one may be idle (`filled_micro_batches`)."""
        return -(-self.streams // (self.data * self.micro_batch))

    @property
    def local_streams(self) -> range:
        """Global numbers of this data parallel rank's streams, micro-batch after micro-batch.

        Micro-batch i of every step is `local_streams[i*micro_batch : (i+1)*micro_batch]`.  If the micro-batches of all
        streams cannot be dealt out evenly, some ranks get one more than others.
        """
        count = self.streams // self.micro_batch
        first, end = (rank * count // self.data for rank in (self.data_rank, self.data_rank + 1))
        return range(first * self.micro_batch, end * self.micro_batch)

    @property
    def filled_micro_batches(self) -> int:
        """Micro-batches of this rank that hold streams: all, or all but the last, which is padding."""
        return len(self.local_streams) // self.micro_batch

    @property
    def rows(self) -> tuple[int, ...]:
        """The stream of each row of this rank's micro-batches; rows of an idle one have numbers of no stream."""
        idle = self.micro_batches * self.micro_batch - len(self.local_streams)
        return (*self.local_streams, *range(self.streams, self.streams + idle))


class MegatronGroups:
    """Megatron's groups under the names that DeepSpeed expects of an `mpu` (used without a pipeline)."""

    get_tensor_model_parallel_rank = staticmethod(parallel_state.get_tensor_model_parallel_rank)
    get_tensor_model_parallel_world_size = staticmethod(parallel_state.get_tensor_model_parallel_world_size)
    get_tensor_model_parallel_group = staticmethod(parallel_state.get_tensor_model_parallel_group)
    get_model_parallel_rank = staticmethod(parallel_state.get_tensor_model_parallel_rank)
    get_model_parallel_world_size = staticmethod(parallel_state.get_tensor_model_parallel_world_size)
    get_model_parallel_group = staticmethod(parallel_state.get_model_parallel_group)
    get_data_parallel_rank = staticmethod(parallel_state.get_data_parallel_rank)
    get_data_parallel_world_size = staticmethod(parallel_state.get_data_parallel_world_size)
    get_data_parallel_group = staticmethod(parallel_state.get_data_parallel_group)


def meet(layout: Layout, timeout_seconds: float) -> Any:
    """Join the other ranks at MASTER_ADDR and MASTER_PORT; returns the store that all share.

    Raises:
        ConfigError: the number of started ranks differs from the layout's.
    """
    world = int(os.environ["WORLD_SIZE"])
    if world != layout.world_size:
        raise ConfigError(
            f"{world} ranks were started, but parallel.tensor={layout.tensor} * parallel.pipeline={layout.pipeline} * "
            f"parallel.data={layout.data} needs {layout.world_size}."
        )
    return rendezvous_store(layout.rank, world, timeout_seconds)


def initialize(layout: Layout, device: Device, timeout_seconds: float = 600.0, store: Any = None) -> None:
    """Join the other ranks and create Megatron's process groups; check them against DeepSpeed's numbering.

    Args:
        layout: of this rank.
        device: of this rank.
        timeout_seconds: of the rendezvous, and of collectives until `limit_waiting`.
        store: from `meet`, for the rendezvous; None: call `meet` here.

    Raises:
        ConfigError: the number of started ranks differs from the layout's.
        PlatformError: Megatron and DeepSpeed would form different groups.
    """
    let_gloo_follow()
    dist.init_process_group(
        device.backend,
        store=meet(layout, timeout_seconds) if store is None else store,
        rank=layout.rank,
        world_size=layout.world_size,
        timeout=timedelta(seconds=timeout_seconds),
    )
    import deepspeed

    deepspeed.init_distributed(device.backend)  # uses the existing group
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=layout.tensor,
        pipeline_model_parallel_size=layout.pipeline,
        create_gloo_process_groups=False,  # nobody uses them
    )
    _check_groups(layout)


def sharding(config: Config, layout: Layout) -> Sharding:
    """How tensor parallelism and ZeRO split the parameters of this rank."""
    is_flat = config.parallel.zero_stage > 0
    if is_flat:
        group = parallel_state.get_tensor_and_data_parallel_group()
    else:
        group = parallel_state.get_tensor_model_parallel_group()
    return Sharding(
        tensor=layout.tensor,
        tensor_rank=layout.tensor_rank,
        is_flat=is_flat,
        shards=layout.data if is_flat else 1,
        shard=layout.data_rank if is_flat else 0,
        group=group,
    )


def topology(layout: Layout) -> Any:
    """DeepSpeed's description of the same layout."""
    return pipeline_topology(pipeline=layout.pipeline, tensor=layout.tensor, data=layout.data)


def _check_groups(layout: Layout) -> None:
    axes = {
        "model": parallel_state.get_tensor_model_parallel_group(),
        "data": parallel_state.get_data_parallel_group(),
        "pipe": parallel_state.get_pipeline_model_parallel_group(),
    }
    deepspeed = topology(layout)
    for axis, group in axes.items():
        megatron_ranks = dist.get_process_group_ranks(group)
        mine = [ranks for ranks in groups_on_axis(deepspeed, axis) if layout.rank in ranks]
        # DeepSpeed lists no groups for an axis of size one
        expected = mine[0] if mine else [layout.rank]
        if megatron_ranks != expected:
            raise PlatformError(
                f"rank {layout.rank}: Megatron's group on the {axis} axis is {megatron_ranks}, DeepSpeed's {expected}. "
                "The installed versions number ranks differently; use those in requirements.lock."
            )


def finalize() -> None:
    """Destroy the process groups, so that the interpreter exits without warnings."""
    if parallel_state.model_parallel_is_initialized():
        parallel_state.destroy_model_parallel()
    if dist.is_initialized():
        dist.destroy_process_group()


def is_joined() -> bool:
    """Whether this process belongs to process groups already."""
    return bool(parallel_state.model_parallel_is_initialized())


@contextmanager
def single_process(kind: str = "cpu") -> Iterator[Device]:
    """Context manager: a world of one process, so that Megatron's layers work.  For tools, export and tests."""
    with tempfile.TemporaryDirectory() as folder:
        device = choose(kind, 0)
        layout = Layout(tensor=1, pipeline=1, data=1, micro_batch=1, streams=1, rank=0)
        initialize(layout, device, store=dist.FileStore(str(Path(folder) / "store"), 1))
        try:
            yield device
        finally:
            finalize()


def agree(values: Sequence[float], device: Device) -> tuple[float, ...]:
    """The maximum over all ranks, for each of `values`; the same on all ranks.  Collective."""
    tensor = torch.tensor([float(value) for value in values], dtype=torch.float64, device=device.torch)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return tuple(tensor.tolist())


def limit_waiting(seconds: float) -> None:
    """Set the timeout of collectives in all groups.

    Startup needs a longer one, because kernels are compiled and checkpoints are read; in training, a rank that waits
    this long is waiting for one that is gone.
    """
    set_timeout_of_all_groups(seconds)
