"""What each stage executes in a training step, read from the schedule that DeepSpeed's engine executes."""

from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
from functools import cache


class Kind(StrEnum):
    """Kinds of instructions, by the names of DeepSpeed's classes."""

    LOAD = "LoadMicroBatch"
    FORWARD = "ForwardPass"
    BACKWARD = "BackwardPass"
    SEND_ACTIVATION = "SendActivation"
    RECEIVE_ACTIVATION = "RecvActivation"
    SEND_GRADIENT = "SendGrad"
    RECEIVE_GRADIENT = "RecvGrad"
    REDUCE_TIED = "ReduceTiedGrads"
    REDUCE = "ReduceGrads"
    UPDATE = "OptimizerStep"


_ONCE = (Kind.REDUCE_TIED, Kind.REDUCE, Kind.UPDATE)


@dataclass(frozen=True)
class Instruction:
    """One instruction of a stage.

    Attributes:
        kind: what it does.
        micro_batch: its number; None if it is done once per step.
    """

    kind: Kind
    micro_batch: int | None


@cache
def instructions(micro_batches: int, stages: int, stage: int) -> tuple[Instruction, ...]:
    """What a stage executes in a training step, in order.  Imports DeepSpeed.

    Schedules name buffers, not micro-batches; each kind of instruction takes micro-batches in their order.
    """
    from brt_dist.parallel.deepspeed_internals import pipeline_instructions

    done: Counter[Kind] = Counter()
    found = []
    for name in pipeline_instructions(micro_batches, stages, stage):
        kind = Kind(name)
        found.append(Instruction(kind, None if kind in _ONCE else done[kind]))
        done[kind] += 1
    return tuple(found)
