"""The training loop of one rank: from the newest checkpoint to the last step.

`trainer_state` defines steps and their numbers; `hooks` measures, evaluates and saves.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing

from brt_dist.checkpoint.store import CheckpointStore
from brt_dist.data.dataset import Dataset
from brt_dist.data.mixture import Mixture
from brt_dist.data.objectives.base import objective_of
from brt_dist.data.reader import Prefetcher, SegmentReader
from brt_dist.data.stream_schedule import StreamSchedule
from brt_dist.errors import ExitCode
from brt_dist.event_log import EventLog
from brt_dist.events import SkipEvent
from brt_dist.optim.learning_rate import learning_rate
from brt_dist.parallel.engine import Engine, StepResult
from brt_dist.parallel.micro_batches import StepInput
from brt_dist.parallel.step_input import step_input, streams_to_read
from brt_dist.training.adjustments import Adjustments
from brt_dist.training.hooks.base import Hook
from brt_dist.training.resume import resume
from brt_dist.training.stopping import StopFlag, agree_to_stop
from brt_dist.training.trainer_state import TrainedStep, TrainerState


class Trainer:
    """One attempt of a run, on one rank.  `build.build_trainer` makes one.

    Args:
        engine: model, optimizer and memory; has the config, the layout and the device.
        dataset: to train on.
        schedule: the stream schedule.
        store: the checkpoints of the run.
        adjustments: of the run, after divergences.
        stop: checked once per step.
        events: the event log of the attempt.
        hooks: in calling order.
        report: called with messages about what the attempt starts from.
        prefetch_steps: how many steps ahead remote documents are fetched.
    """

    def __init__(
        self,
        engine: Engine,
        dataset: Dataset | Mixture,
        schedule: StreamSchedule,
        store: CheckpointStore,
        adjustments: Adjustments,
        stop: StopFlag,
        events: EventLog,
        hooks: Sequence[Hook],
        report: Callable[[str], None],
        prefetch_steps: int = 0,
    ) -> None:
        self.config, self.layout, self.device = engine.config, engine.layout, engine.device
        self.engine, self.store, self.hooks = engine, store, hooks
        self.dataset, self.schedule, self.prefetch_steps = dataset, schedule, prefetch_steps
        self.adjustments, self.stop, self.events, self.report = adjustments, stop, events, report
        self.objective = objective_of(self.config.model, self.config.run.seed)
        self.state = TrainerState(schedule.start())
        self.trained = 0  # steps of this attempt

    def run(self) -> ExitCode:
        """Resume, then train to the last step of the run or until asked to stop.  Collective."""
        self.resume()
        for hook in self.hooks:
            hook.on_start(self.state)
        if self.state.left_out:
            self.state.left_out = False
            for hook in self.hooks:
                hook.make_up(self.state)
        return self.train_until(self.config.run.steps)

    def resume(self) -> None:
        """Load the newest checkpoint, or else the initial weights, if there are any.  Collective."""
        tokenizer = self.dataset.tokenizer_sha256
        self.state = resume(self.store, self.engine, self.schedule.start(), tokenizer, self.report)

    def train_until(self, end: int) -> ExitCode:
        """Train up to and including step `end`, or until asked to stop.  Collective."""
        stop = self.stop.agreed
        with closing(self._read()) as segments:
            while self.state.step < end and not stop:
                stop = self.train_step(segments)
                for hook in self.hooks:
                    # an evaluation may be skipped because a rank is asked to stop; the checkpoint comes after it
                    hook.between_steps(self.state, is_last=stop or self.stop.agreed or self.state.step == end)
                stop = stop or self.stop.agreed
            for hook in self.hooks:
                hook.on_end()
        return ExitCode.PREEMPTED if self.state.step < end or self.state.left_out else ExitCode.FINISHED

    def train_step(self, segments: Prefetcher) -> bool:
        """Do one step; returns whether any rank was asked to stop.  Collective."""
        began = time.perf_counter()
        number = self.state.step + 1
        plan, read, cursor, waited = segments.next()
        if self.adjustments.skips(number):
            self.state.advance(cursor)
            self.events.write(SkipEvent(step=number, why="skipped after a divergence"))
            return agree_to_stop(self.stop, self.device)
        rate = learning_rate(number, self.config.run.steps, self.config.optimizer)
        rate *= self.adjustments.rate_factor(number)
        batch = step_input(number, plan, read, self.layout, self.device, objective=self.objective)
        result = self._update(batch, rate)
        self.state.advance(cursor, plan.loss_tokens if result.is_finite else 0)
        is_first, self.trained = self.trained == 0, self.trained + 1
        step = TrainedStep(number, result, rate, plan.loss_tokens, self.state.tokens, began, waited, is_first)
        for hook in self.hooks:
            hook.after_step(step)
        return result.asked_to_stop

    def close(self) -> None:
        """Release DeepSpeed's hooks, process groups and threads."""
        self.store.close()
        self.engine.close()

    def _update(self, batch: StepInput, rate: float) -> StepResult:
        with ExitStack() as around:
            for hook in self.hooks:
                around.enter_context(hook.around_step(batch.number))
            return self.engine.train_step(batch, rate, lambda: self.stop.asked)

    def _read(self) -> Prefetcher:
        """The segments of this rank's streams from here on, read in the background."""
        reader = SegmentReader(self.dataset, self.schedule, self.objective.reads_beginnings)
        streams = streams_to_read(self.layout)
        return Prefetcher(reader, self.schedule, self.state.cursor, streams, prefetch_steps=self.prefetch_steps)
