"""Finds slow ranks.  One slow rank slows all of them down, so step times alone do not show which it is."""

import socket
import statistics
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
import torch.distributed as dist

from brt_dist.config.guards import GuardsConfig
from brt_dist.events import StragglerEvent
from brt_dist.parallel.device import Device
from brt_dist.parallel.waiting import StepTimer, time_step
from brt_dist.training.hooks.base import Hook, Tell
from brt_dist.training.trainer_state import TrainedStep

_NOISE_SECONDS = 0.02  # delays that an operating system may cause on any rank


class Stragglers(Hook):
    """Compares the ranks' working times for a step, every `run.guards.straggler_every` steps.  Collective then.

    A rank is reported when two comparisons in a row find it slow; a single slow step means nothing.  Keeps the ranks
    that the last comparison of this attempt found; the next attempt may run on other nodes.
    """

    def __init__(self, config: GuardsConfig, device: Device, tell: Tell) -> None:
        self._config, self._device, self._tell = config, device, tell
        self._slow: set[int] = set()  # at the last comparison
        self._work: StepTimer | None = None  # of the current step, if it is compared

    def around_step(self, number: int) -> AbstractContextManager[None]:
        every = self._config.straggler_every
        is_compared = bool(every) and number % every in (0, 1 % every) and number > 1
        return self._measured() if is_compared and dist.get_world_size() > 1 else nullcontext()

    def after_step(self, step: TrainedStep) -> None:
        work, self._work = self._work, None
        if work is not None:
            self._compare(work, step.number)

    @contextmanager
    def _measured(self) -> Iterator[None]:
        with time_step(self._device) as self._work:
            yield

    def _compare(self, work: StepTimer, step: int) -> None:
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
    """The ranks that work more than `ratio` times as long as the median rank."""
    usual = statistics.median_low(seconds)  # of two, the faster one
    return {rank for rank, one in enumerate(seconds) if one > ratio * usual and one > usual + _NOISE_SECONDS}
