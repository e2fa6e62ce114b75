"""How far a run has come, and what a step is.

A *step* reads one segment of every stream.  Steps are numbered from 1: step 1 is the first, `run.steps` the last, and
"after step N" means that N steps are over.  The learning rate, `adjustments.json`, the dropout masks, evaluations,
checkpoints and events all go by the number of the step.

An *update* is a step whose gradient was applied.  A step that `adjustments.json` leaves out, or whose gradient is not
finite, is a step without an update: it counts as a step and the streams move on, but weights, optimizer state and
memory stay as they were.  Only the optimizer counts updates (`Engine.updates`): its own decay rates go by them.
"""

from dataclasses import dataclass, field

from brt_dist.data.stream_schedule import Cursor
from brt_dist.parallel.engine import StepResult


@dataclass
class Progress:
    """Where a run stands between two steps; with the state of the engine it is what a checkpoint holds.

    Attributes:
        cursor: where the streams read next.
        step: number of the last step that is over; 0 before the first.
        tokens: with a target, in the steps whose loss and gradient were finite.
        evaluations: bits per token found after this step, by dataset and memory ("validation/carried").
    """

    cursor: Cursor
    step: int = 0
    tokens: int = 0
    evaluations: dict[str, float] = field(default_factory=dict)

    def advance(self, cursor: Cursor, tokens: int = 0) -> None:
        """One more step is over, in which `tokens` tokens were trained on; `cursor` is the next one's."""
        self.cursor = cursor
        self.step += 1
        self.tokens += tokens
        self.evaluations = {}


@dataclass(frozen=True)
class TrainedStep:
    """What is known of a step after its forward, backward and update (if its gradient was finite).

    Attributes:
        number: of the step, from 1.
        result: loss and gradient norm, the same on all ranks.
        learning_rate: of the update.
        loss_tokens: tokens with a target, of the global batch.
        tokens: of the whole run so far, as `Progress.tokens`.
        began: `time.perf_counter()` before its data was asked for.
        waited: seconds for which it waited for data.
        is_first: whether it is the first that this attempt trained.
    """

    number: int
    result: StepResult
    learning_rate: float
    loss_tokens: int
    tokens: int
    began: float
    waited: float
    is_first: bool
