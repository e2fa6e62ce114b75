"""The training loop of one rank: from the last checkpoint to the last step."""

import math
import time
from pathlib import Path

from brt_dist.checkpoint.open_storage import open_storage
from brt_dist.checkpoint.store import CheckpointStore
from brt_dist.config.schema import Config
from brt_dist.data.dataset import Dataset
from brt_dist.data.mixture import Mixture
from brt_dist.data.reader import Prefetcher, SegmentReader
from brt_dist.data.stream_schedule import Cursor, StreamSchedule
from brt_dist.errors import ExitCode
from brt_dist.evaluation.evaluate import evaluate
from brt_dist.events import (
    AttemptEvent,
    CheckpointEvent,
    EvaluationEvent,
    EventLog,
    HeldEvent,
    LayoutSizes,
    MemoryEvent,
    MessageEvent,
    SampleEvent,
    SkipEvent,
    StepEvent,
)
from brt_dist.generation.prompts import samples
from brt_dist.optim.learning_rate import learning_rate
from brt_dist.parallel.device import Device
from brt_dist.parallel.engine import build_engine
from brt_dist.parallel.layout import Layout, agree, limit_waiting
from brt_dist.parallel.step_input import step_input, streams_to_read
from brt_dist.planning.flops import TRAINING, forward_flops
from brt_dist.planning.hardware import peak_flops
from brt_dist.planning.memory import plan_of
from brt_dist.run_directory import RunDirectory
from brt_dist.training.adjustments import Adjustments
from brt_dist.training.guards import NumberGuard, StopRequest, agree_on_step
from brt_dist.training.heartbeat import Heartbeat
from brt_dist.training.held import held
from brt_dist.training.initial_weights import begin_from
from brt_dist.training.memory_statistics import memory_statistics
from brt_dist.training.stragglers import StragglerWatch


class Trainer:
    """One attempt of a run, on one rank.

    Args:
        config: resolved, with `model.vocab_size` set.
        run: the run directory.
        train, validation: opened datasets; without validation only the training data is evaluated.
        stop: asked once a step whether to end early.
        heartbeat: told what this rank does.
    """

    def __init__(
        self,
        config: Config,
        run: Path,
        layout: Layout,
        device: Device,
        events: EventLog,
        train: Dataset | Mixture,
        validation: Dataset | None,
        stop: StopRequest,
        heartbeat: Heartbeat | None = None,
    ) -> None:
        self.config = config
        self.layout = layout
        self.device = device
        self.events = events
        self.datasets: dict[str, Dataset | Mixture] = {"train": train}
        if validation:
            self.datasets["validation"] = validation
        self.ahead = config.data.cache.ahead_steps if train.is_remote else 0
        self.stop = stop
        self.heartbeat = heartbeat or Heartbeat(None)
        self.adjustments = Adjustments.load(run)
        self.guard = NumberGuard(config.run.guards, events.write)
        self.stragglers = StragglerWatch(config.run.guards, device, events.write)
        self.trained = 0  # steps of this attempt
        self.flops = TRAINING * forward_flops(config.model)  # of a token
        self.peak_flops = peak_flops(device.name, config.run.precision)  # of a device; none where it is not known
        self.schedule = StreamSchedule(
            train.parts,
            weights=train.weights,
            streams=config.data.streams,
            segment=config.data.segment,
            window=config.model.window,
            seed=config.run.seed,
        )
        self.engine = build_engine(config, layout, device)
        storage = open_storage(config.run.checkpoints or RunDirectory(run).checkpoints)
        self.store = CheckpointStore(
            storage, config, layout, train.digest, report=self._report, tokenizer=train.tokenizer_sha256
        )
        self.step, self.tokens, self.cursor = 0, 0, self.schedule.start()
        self.saved_step: int | None = None
        self.evaluations: dict[str, float] = {}  # of this step

    def run(self) -> ExitCode:
        """Resume, train to the last step or to a request to stop, evaluate, save.  Collective."""
        self.resume()
        layout = self.layout
        self.events.write(
            AttemptEvent(
                world_size=layout.world_size,
                layout=LayoutSizes(layout.tensor, layout.pipeline, layout.data, layout.micro_batch, layout.streams),
                start_step=self.step,
                device=self.device.name,
                flops_per_token=self.flops,
                plan=plan_of(self.config),
            )
        )
        return self.train_until(self.config.run.steps)

    def resume(self) -> None:
        """Take over the newest checkpoint, or the weights to start with, if there are any.  Collective."""
        checkpoint = self.store.open_newest()
        if checkpoint is None:
            if self.config.run.init_from is not None:
                tokenizer = self.datasets["train"].tokenizer_sha256
                found = begin_from(self.config.run.init_from, self.config, tokenizer, self.engine)
                self._report(f"starting with the {found}")
            return
        with checkpoint:
            manifest = checkpoint.manifest
            self.engine.load(checkpoint.read, manifest.updates)
        self.step, self.tokens = manifest.step, manifest.tokens
        if self.store.is_new_dataset(manifest):
            self._report("the training data is another than before: streams begin anew")
        else:
            cursor = Cursor.from_json(manifest.cursor)
            if cursor.streams != self.layout.streams:
                self._report(f"{self.layout.streams} streams, {cursor.streams} before")
            self.cursor = cursor.resized(self.layout.streams)
        self.saved_step = self.step
        self._report(f"resumed after step {self.step}")

    def train_until(self, end: int) -> ExitCode:
        """Train, evaluate and save up to step `end`, or until asked to stop.  Collective."""
        reader = SegmentReader(self.datasets["train"], self.schedule)
        prefetcher = Prefetcher(reader, self.schedule, self.cursor, streams_to_read(self.layout), ahead=self.ahead)
        try:
            while self.step < end:
                stop = self._train_step(prefetcher)
                self._tell_saved()
                last = self.step == end
                if _is_due(self.step, self.config.run.evaluate_every) or self.step == self.config.run.steps:
                    self._evaluate()
                if _is_due(self.step, self.config.run.checkpoint_every) or last:
                    self._save()
                if stop and not last:
                    self._save()
                    self._finish_saving()
                    return ExitCode.PREEMPTED
            self._finish_saving()
        finally:
            prefetcher.close()
        return ExitCode.FINISHED

    def close(self) -> None:
        """Give back what outlives the objects: DeepSpeed's hooks, process groups, threads."""
        self.store.close()
        self.engine.close()

    def _train_step(self, prefetcher: Prefetcher) -> bool:
        """One step; whether a rank was asked to stop."""
        began = time.perf_counter()
        number = self.step + 1
        plan, segments, cursor, waited = prefetcher.next()
        self.evaluations = {}
        if self.adjustments.skips(number):
            self.step, self.cursor = number, cursor
            self.events.write(SkipEvent(step=number, why="left out after a divergence"))
            return agree((self.stop.asked,), self.device)[0] > 0
        rate = learning_rate(number, self.config.run.steps, self.config.optimizer)
        rate *= self.adjustments.rate_factor(number)
        batch = step_input(self.step, plan, segments, self.layout, self.device)
        with self.stragglers.look(number) as work:
            result = self.engine.train_step(batch, rate)
        stop = agree_on_step(result, number, self.stop, self.device)
        self.guard.check(result, number)
        self.step, self.cursor = number, cursor
        self.tokens += plan.loss_tokens if result.is_finite else 0
        if result.is_finite and (_is_due(self.step, self.config.run.log_every) or self.step == self.config.run.steps):
            self.device.synchronize()
            seconds = time.perf_counter() - began
            self.events.write(
                StepEvent(
                    step=self.step,
                    loss=result.loss,
                    bits_per_token=result.loss / math.log(2),
                    grad_norm=result.grad_norm,
                    learning_rate=rate,
                    tokens=self.tokens,
                    tokens_per_second=plan.loss_tokens / seconds,
                    step_seconds=seconds,
                    data_wait_seconds=waited,
                    peak_memory_bytes=self.device.peak_memory_bytes(),
                    mfu=self._utilization(plan.loss_tokens / seconds),
                )
            )
        self.stragglers.judge(work, number)
        if _is_due(number, self.config.run.memory_every) and self.config.model.recurrent_layers:
            self.events.write(MemoryEvent(step=number, layers=memory_statistics(self.engine)))
        if self.trained == 0:
            self.events.write(HeldEvent(step=number, **held(self.engine).to_json()))
            limit_waiting(self.config.run.guards.collective_seconds)
        self.trained += 1
        self.heartbeat.beat()
        return stop

    def _utilization(self, tokens_per_second: float) -> float | None:
        """MFU: the share of what the devices can do that the model asks for; None where they are not known."""
        if self.peak_flops is None:
            return None
        return tokens_per_second * self.flops / (self.layout.world_size * self.peak_flops)

    def _evaluate(self) -> None:
        self.heartbeat.slow("evaluating")
        for name, dataset in self.datasets.items():
            for memory in ("carried", "cleared"):
                began = time.perf_counter()
                found = evaluate(self.engine, dataset, self.config.run.evaluation_steps, memory == "cleared")
                self.evaluations[f"{name}/{memory}"] = found.bits_per_token
                self.events.write(
                    EvaluationEvent(
                        step=self.step,
                        dataset=name,
                        memory=memory,
                        loss=found.loss,
                        bits_per_token=found.bits_per_token,
                        tokens=found.tokens,
                        positions=found.positions,
                        seconds=time.perf_counter() - began,
                    )
                )
        if self.config.run.sample_tokens:
            self.heartbeat.slow("sampling")
            dataset = self.datasets.get("validation", self.datasets["train"])
            found_texts = samples(self.engine, dataset, self.config.run.sample_tokens, self.step)
            self.events.write(SampleEvent(step=self.step, samples=tuple(found_texts)))

    def _save(self) -> None:
        if self.saved_step != self.step:
            self.heartbeat.slow("saving")
            self.store.save(self.step, self.tokens, self.cursor.to_json(), self.evaluations, self.engine)
            self.saved_step = self.step
            self._tell_saved()

    def _finish_saving(self) -> None:
        self.heartbeat.slow("saving")
        self.store.wait()
        self._tell_saved()

    def _tell_saved(self) -> None:
        for saved in self.store.finished():
            self.events.write(
                CheckpointEvent(
                    step=saved.step,
                    path=f"checkpoints/{saved.name}",
                    seconds=saved.seconds,
                    stall_seconds=saved.stall_seconds,
                    bytes=saved.bytes,
                )
            )

    def _report(self, message: str) -> None:
        print(message, flush=True)
        self.events.write(MessageEvent(message=message))


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
