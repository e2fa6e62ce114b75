"""Rates of the links between the ranks of a machine, and the least time of a collective."""

from dataclasses import dataclass

import torch
import torch.distributed as dist

from brt_dist.parallel.device import Device
from brt_dist.planning.calibration.clock import Clock

_SHORT = 256  # bytes
_LONG = {"cpu": 4 << 20, "cuda": 256 << 20}


@dataclass(frozen=True)
class Links:
    """Between the ranks of a machine.

    Attributes:
        seconds: of a short all-reduce.
        rate: bytes a second that a rank sends in an all-reduce.
        shares: what an all-gather, a reduce-scatter and a transfer from rank to rank reach of it.
    """

    seconds: float
    rate: float
    shares: dict[str, float]


def links(device: Device, clock: Clock) -> Links:
    """Measure them; meaningless for a single rank.  Collective."""
    ranks, size = dist.get_world_size(), _LONG[device.kind]
    short = torch.ones(_SHORT // 4, device=device.torch)
    whole = torch.ones(size // 4, device=device.torch)
    part = whole[: len(whole) // ranks].clone()
    gathered = torch.empty(len(part) * ranks, device=device.torch)
    others = (ranks - 1) / ranks
    latency = clock(lambda: dist.all_reduce(short))
    reduced = clock(lambda: dist.all_reduce(whole.fill_(1.0)))
    together = clock(lambda: dist.all_gather_into_tensor(gathered, part))
    scattered = clock(lambda: dist.reduce_scatter_tensor(part, whole))
    passed = clock(lambda: _to_next(whole))
    rate, gather, scatter, send = (
        sent / max(seconds - latency, seconds / 10)
        for sent, seconds in (
            (2 * others * size, reduced), (others * size, together), (others * size, scattered), (size, passed),
        )
    )  # fmt: skip
    return Links(latency, rate, {"gather": gather / rate, "scatter": scatter / rate, "send": send / rate})


def _to_next(buffer: torch.Tensor) -> None:
    """Each even rank sends to the next one."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    if rank % 2 == 0 and rank + 1 < ranks:
        dist.send(buffer, rank + 1)
    elif rank % 2:
        dist.recv(buffer, rank - 1)
