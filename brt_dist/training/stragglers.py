"""A rank that is slow makes all ranks slow, and looks like any other.  This finds it."""

import socket
import statistics
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.distributed as dist

from brt_dist.config.guards import GuardsConfig
from brt_dist.events import StragglerEvent
from brt_dist.parallel.device import Device
from brt_dist.parallel.waiting import Work, work_of_step
from brt_dist.training.guards import Tell

_NOISE_SECONDS = 0.02  # what a scheduler may do to anybody


class StragglerWatch:
    """Compares, now and then, how long each rank works on a step.

    Two looks in a row must find the same rank: a single slow step means nothing.
    """

    def __init__(self, config: GuardsConfig, device: Device, tell: Tell) -> None:
        self._config, self._device, self._tell = config, device, tell
        self._slow: set[int] = set()  # at the last look

    def look(self, step: int) -> AbstractContextManager[Work | None]:
        """To be put around step number `step`; measures where it is due (and in the step after)."""
        every = self._config.straggler_every
        is_due = bool(every) and step % every in (0, 1 % every) and step > 1
        return work_of_step(self._device) if is_due and dist.get_world_size() > 1 else nullcontext()

    def judge(self, work: Work | None, step: int) -> None:
        """Tell of ranks that are slow.  Collective when there is a measurement."""
        if work is None:
            return
        mine = torch.tensor([work.seconds], dtype=torch.float64, device=self._device.torch)
        all_ranks = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
        dist.all_gather(all_ranks, mine)
        seconds = [float(one) for one in all_ranks]
        slow = stragglers(seconds, self._config.straggler_ratio)
        if found := slow & self._slow:
            hosts: list[str] = [""] * len(seconds)
            dist.all_gather_object(hosts, socket.gethostname())
            for rank in sorted(found):
                median = statistics.median(seconds)
                self._tell(
                    StragglerEvent(step=step, rank=rank, host=hosts[rank], seconds=seconds[rank], median_seconds=median)
                )
        self._slow = slow


def stragglers(seconds: list[float], ratio: float) -> set[int]:
    """The ranks that work more than `ratio` times as long as the median of the ranks."""
    usual = statistics.median_low(seconds)  # of two, the faster one
    return {rank for rank, one in enumerate(seconds) if one > ratio * usual and one > usual + _NOISE_SECONDS}
