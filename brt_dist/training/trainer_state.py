"""How far a run has come, and what a step is.

A *step* reads one segment of every stream.  Steps are numbered from 1 to `run.steps`; "after step N" means that N steps
are done.  The learning rate, `adjustments.json`, dropout masks, evaluations, checkpoints and events all depend on the
step number.

An *update* is a step whose gradient was applied.  A step that `adjustments.json` skips, or whose gradient is not
finite, has no update: it counts as a step and the streams advance, but weights, optimizer state and memory stay the
same.  Only the optimizer counts updates (`Engine.updates`), for its own decay rates.
"""

from dataclasses import dataclass, field

from brt_dist.data.stream_schedule import Cursor
from brt_dist.parallel.engine import StepResult


@dataclass
class TrainerState:
    """The state of the training loop between two steps.  A checkpoint holds this and the state of the engine.

    Attributes:
        cursor: where the streams read next.
        step: number of the last finished step; 0 before the first.
        tokens: tokens with a target so far, in steps whose loss and gradient were finite.
        evaluations: bits per token after this step, by dataset and memory ("validation/carried").
        left_out: whether an evaluation or samples were due after this step but skipped, as the run was asked to stop.
    """

    cursor: Cursor
    step: int = 0
    tokens: int = 0
    evaluations: dict[str, float] = field(default_factory=dict)
    left_out: bool = False

    def advance(self, cursor: Cursor, tokens: int = 0) -> None:
        """Finish a step that trained on `tokens` tokens; `cursor` is that of the next step."""
        self.cursor = cursor
        self.step += 1
        self.tokens += tokens
        self.evaluations, self.left_out = {}, False


@dataclass(frozen=True)
class TrainedStep:
    """A step after forward, backward and update (if its gradient was finite).

    Attributes:
        number: of the step, from 1.
        result: loss and gradient norm, the same on all ranks.
        learning_rate: of the update.
        loss_tokens: tokens with a target in the global batch.
        tokens: tokens of the whole run so far, including this step.
        began: `time.perf_counter()` before the step's data was requested.
        waited: seconds that the step waited for data.
        is_first: whether this is the first step that this attempt trained.
    """

    number: int
    result: StepResult
    learning_rate: float
    loss_tokens: int
    tokens: int
    began: float
    waited: float
    is_first: bool
