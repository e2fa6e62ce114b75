"""One training step of a pipeline as events: who computes, sends or waits when.

Ranks execute what DeepSpeed's engine executes, each in its own order.  As there, a transfer is blocking: it begins when
both ends have come to it, and keeps both busy.  Our engine adds one thing: all ranks agree on the result of the step
before any of them updates (brt_dist/parallel/control.py), so the updates begin together.
"""

import heapq
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import count

from brt_dist.planning.simulator.disturbance import UNDISTURBED, Disturbance, Drawn, Place
from brt_dist.planning.simulator.instructions import Instruction, Kind, instructions
from brt_dist.planning.simulator.seconds import StageSeconds

COMPUTE = frozenset({Kind.FORWARD, Kind.BACKWARD, Kind.UPDATE})
_ACTIVATIONS = (Kind.SEND_ACTIVATION, Kind.RECEIVE_ACTIVATION)
_GRADIENTS = (Kind.SEND_GRADIENT, Kind.RECEIVE_GRADIENT)
_FORWARD_ENDS = (Kind.SEND_ACTIVATION, Kind.RECEIVE_GRADIENT)  # of a link, at the stage before it


@dataclass(frozen=True)
class Interval:
    """When a place executed an instruction; where it does nothing, it waits.

    Attributes:
        replica: data parallel rank.
        stage: of the pipeline.
        kind: of the instruction.
        micro_batch: its number; None if it is done once per step.
        begin, end: seconds since the step began.
    """

    replica: int
    stage: int
    kind: Kind
    micro_batch: int | None
    begin: float
    end: float

    @property
    def seconds(self) -> float:
        return self.end - self.begin


@dataclass(frozen=True)
class Step:
    """A simulated step.

    Attributes:
        seconds: until the last place has updated; until the last event if the step was never finished.
        replicas, stages: how many were simulated.
        intervals: of all places, in the order of their ends.
        stuck: places that wait forever, and for what; empty if the step was finished.
    """

    seconds: float
    replicas: int
    stages: int
    intervals: tuple[Interval, ...]
    stuck: dict[Place, Kind]

    def busy(self, stage: int) -> float:
        """Seconds of compute of a stage, the mean over its replicas."""
        return sum(i.seconds for i in self.intervals if i.stage == stage and i.kind in COMPUTE) / self.replicas

    @property
    def bubble(self) -> float:
        """The share of the step in which ranks wait: neither compute nor communicate."""
        active = sum(interval.seconds for interval in self.intervals)
        return 1 - active / (self.seconds * self.stages * self.replicas) if self.seconds else 0.0

    def share(self, *kinds: Kind) -> float:
        """The share of the step that ranks spend on instructions of some kinds."""
        spent = sum(interval.seconds for interval in self.intervals if interval.kind in kinds)
        return spent / (self.seconds * self.stages * self.replicas) if self.seconds else 0.0


def simulate_step(
    stages: Sequence[StageSeconds],
    micro_batches: int,
    replicas: int = 1,
    disturbance: Disturbance = UNDISTURBED,
) -> Step:
    """Simulate a training step.

    Args:
        stages: of the pipeline, in order; one: no pipeline.
        micro_batches: of a step, on each replica.
        replicas: data parallel ranks to simulate.  Without a disturbance they are all alike, so one is enough.
        disturbance: of the step.

    Raises:
        ValueError: the disturbance names a place that does not exist, or sizes are not positive.
    """
    if not stages or micro_batches < 1 or replicas < 1:
        raise ValueError(f"{len(stages)} stages, {micro_batches} micro-batches, {replicas} replicas: all must be >= 1")
    absent = sorted(p for p in disturbance.places if not (0 <= p[0] < replicas and 0 <= p[1] < len(stages)))
    if absent:
        raise ValueError(f"replica {absent[0][0]}, stage {absent[0][1]} does not exist: {replicas} x {len(stages)}")
    return _Simulation(stages, micro_batches, replicas, disturbance).run()


class _Simulation:
    def __init__(
        self, stages: Sequence[StageSeconds], micro_batches: int, replicas: int, disturbance: Disturbance
    ) -> None:
        self._stages, self._replicas, self._disturbance = stages, replicas, disturbance
        self._program = [instructions(micro_batches, len(stages), stage) for stage in range(len(stages))]
        self._places = [(replica, stage) for replica in range(replicas) for stage in range(len(stages))]
        self._next = dict.fromkeys(self._places, 0)
        self._drawn: dict[Place, Drawn] = {place: disturbance.drawn(place) for place in self._places}
        self._waiting: dict[Hashable, list[Place]] = {}
        self._events: list[tuple[float, int, Place]] = []  # when a place is free, a number for order, the place
        self._number = count()
        self._intervals: list[Interval] = []

    def run(self) -> Step:
        for place in self._places:
            self._free(place, 0.0)
        now = 0.0
        while self._events:
            now, _, place = heapq.heappop(self._events)
            if now < self._disturbance.failures.get(place, float("inf")):
                self._go_on(place, now)
        stuck = {place: self._at(place).kind for place in self._places if self._next[place] < self._length(place)}
        intervals = tuple(sorted(self._intervals, key=lambda one: (one.end, one.begin)))
        return Step(now, self._replicas, len(self._stages), intervals, stuck)

    def _go_on(self, place: Place, now: float) -> None:
        """A free place reaches its next instruction."""
        if self._next[place] == self._length(place):
            return
        instruction, stage = self._at(place), self._stages[place[1]]
        match instruction.kind:
            case Kind.LOAD:
                self._execute([place], now, 0.0)
            case Kind.FORWARD:
                self._execute([place], now, self._drawn[place].compute(stage.forward))
            case Kind.BACKWARD:
                self._execute([place], now, self._drawn[place].compute(stage.backward))
            case _:
                self._meet(place, instruction, now)

    def _meet(self, place: Place, instruction: Instruction, now: float) -> None:
        """A place reaches an instruction that it executes together with others; the last to arrive starts it."""
        key, needed = self._meeting(place, instruction)
        arrived = self._waiting.setdefault(key, [])
        arrived.append(place)
        if len(arrived) < needed:
            return
        del self._waiting[key]
        if instruction.kind is Kind.UPDATE:
            for one in arrived:
                self._execute([one], now, self._drawn[one].compute(self._stages[one[1]].update))
        else:
            self._execute(arrived, now, self._together(place, instruction.kind))

    def _meeting(self, place: Place, instruction: Instruction) -> tuple[Hashable, int]:
        """Where a place meets others for an instruction, and how many they are."""
        replica, stage = place
        match instruction.kind:
            case Kind.UPDATE:
                return Kind.UPDATE, len(self._places)
            case Kind.REDUCE:
                return (Kind.REDUCE, stage), self._replicas
            case Kind.REDUCE_TIED if stage in (0, len(self._stages) - 1):
                return (Kind.REDUCE_TIED, replica), min(len(self._stages), 2)
            case Kind.REDUCE_TIED:  # holds no copy
                return (Kind.REDUCE_TIED, place), 1
            case kind:
                what = "activation" if kind in _ACTIVATIONS else "gradient"
                return (what, replica, self._link(place, kind), instruction.micro_batch), 2

    def _together(self, place: Place, kind: Kind) -> float:
        """Seconds of what several places do together."""
        replica, stage = place
        if kind is Kind.REDUCE:
            return self._stages[stage].reduce
        if kind is Kind.REDUCE_TIED:
            is_copied = len(self._stages) > 1 and stage in (0, len(self._stages) - 1)
            return max(self._stages[0].tied, self._stages[-1].tied) if is_copied else 0.0
        link = self._link(place, kind)
        sender = self._stages[link if kind in _ACTIVATIONS else link + 1]
        return sender.send * self._disturbance.slow_links.get((replica, link), 1.0)

    def _link(self, place: Place, kind: Kind) -> int:
        """The link of a transfer, by the stage before it."""
        assert kind in _ACTIVATIONS or kind in _GRADIENTS
        return place[1] if kind in _FORWARD_ENDS else place[1] - 1

    def _execute(self, places: Sequence[Place], now: float, seconds: float) -> None:
        end = now + seconds
        if any(self._disturbance.failures.get(place, end) < end for place in places):
            return  # never done, and all that take part wait forever
        for place in places:
            instruction = self._at(place)
            self._next[place] += 1
            self._intervals.append(Interval(*place, instruction.kind, instruction.micro_batch, now, end))
            self._free(place, end)

    def _free(self, place: Place, at: float) -> None:
        heapq.heappush(self._events, (at, next(self._number), place))

    def _at(self, place: Place) -> Instruction:
        return self._program[place[1]][self._next[place]]

    def _length(self, place: Place) -> int:
        return len(self._program[place[1]])
