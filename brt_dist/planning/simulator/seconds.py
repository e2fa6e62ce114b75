"""Input of the step simulator: how long a stage takes for each of its instructions."""

from dataclasses import dataclass


@dataclass(frozen=True)
class StageSeconds:
    """Seconds of one pipeline stage, on each of its ranks.

    Exposed communication belongs to an instruction: tensor parallel collectives to forward and backward, the part of
    the gradient reduction after the last backward pass to `reduce`.

    Attributes:
        forward: of one micro-batch.
        backward: of one micro-batch, with what it recomputes.
        send: of the hidden states of one micro-batch to the next stage, or of their gradients to the stage before; both
            ends are busy meanwhile.
        reduce: of gradients over the data parallel ranks of the stage, once a step.
        update: of the weights, once a step, with the gathering of what other ranks have updated.
        tied: of the sum of both copies' gradients of the token embedding, once a step; of the first and last stage.
    """

    forward: float
    backward: float
    send: float = 0.0
    reduce: float = 0.0
    update: float = 0.0
    tied: float = 0.0
