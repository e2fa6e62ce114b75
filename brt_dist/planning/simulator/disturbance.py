"""What keeps a real step from the ideal one: jitter, stragglers, slow links, ranks that die."""

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

Place: TypeAlias = tuple[int, int]
"""data parallel rank and stage; its tensor parallel ranks wait for each other in every layer, so they are one"""


@dataclass(frozen=True)
class Disturbance:
    """What disturbs a step.

    Attributes:
        jitter: standard deviation of the logarithm of each forward's and backward's duration; the mean stays.
        seed: of the jitter.
        stragglers: how many times as long compute takes, by place.
        slow_links: how many times as long a transfer between a place and the next stage takes, by place.
        failures: the second of the step at which a place stops forever, by place.
    """

    jitter: float = 0.0
    seed: int = 0
    stragglers: Mapping[Place, float] = field(default_factory=dict)
    slow_links: Mapping[Place, float] = field(default_factory=dict)
    failures: Mapping[Place, float] = field(default_factory=dict)

    @property
    def places(self) -> set[Place]:
        """All places named in it."""
        return {*self.stragglers, *self.slow_links, *self.failures}

    def drawn(self, place: Place) -> "Drawn":
        """The durations at a place; they do not depend on the draws for other places."""
        return Drawn(self.jitter, random.Random(f"{self.seed} {place}"), self.stragglers.get(place, 1.0))


UNDISTURBED = Disturbance()


class Drawn:
    """Durations of compute at one place, in the order in which it computes."""

    def __init__(self, jitter: float, generator: random.Random, slowdown: float) -> None:
        self._jitter, self._generator, self._slowdown = jitter, generator, slowdown

    def compute(self, seconds: float) -> float:
        """How long something takes here if it takes `seconds` on an ideal device."""
        if not self._jitter:
            return seconds * self._slowdown
        # the mean of a lognormal is exp(mu + sigma^2 / 2)
        factor = math.exp(self._generator.gauss(-(self._jitter**2) / 2, self._jitter))
        return seconds * self._slowdown * factor
