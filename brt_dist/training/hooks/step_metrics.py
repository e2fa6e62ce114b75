"""Reports the metrics of the attempt and of its steps."""

import math
import time

from brt_dist.config.schema import Config
from brt_dist.events import AttemptEvent, LayoutSizes, StepEvent
from brt_dist.parallel.device import Device
from brt_dist.parallel.layout import Layout
from brt_dist.planning.flops import TRAINING, forward_flops
from brt_dist.planning.hardware import peak_flops
from brt_dist.planning.memory import plan_of
from brt_dist.training.hooks.base import Hook, Tell, is_due
from brt_dist.training.trainer_state import TrainedStep, TrainerState


class StepMetrics(Hook):
    """Writes the facts of the attempt when it starts, and loss, speed and memory every `run.log_every` steps.

    Stateless.
    """

    def __init__(self, config: Config, layout: Layout, device: Device, tell: Tell) -> None:
        self._config, self._layout, self._device, self._tell = config, layout, device, tell
        self._flops = TRAINING * forward_flops(config.model)  # of a token
        self._peak_flops = peak_flops(device.name, config.run.precision)  # of a device; None if unknown

    def on_start(self, state: TrainerState) -> None:
        layout = self._layout
        self._tell(
            AttemptEvent(
                world_size=layout.world_size,
                layout=LayoutSizes(layout.tensor, layout.pipeline, layout.data, layout.micro_batch, layout.streams),
                start_step=state.step,
                device=self._device.name,
                flops_per_token=self._flops,
                plan=plan_of(self._config),
            )
        )

    def after_step(self, step: TrainedStep) -> None:
        run = self._config.run
        if not step.result.is_finite or not is_due(step.number, run.log_every, last=run.steps):
            return
        self._device.synchronize()
        seconds = time.perf_counter() - step.began
        tokens_per_second = step.loss_tokens / seconds
        self._tell(
            StepEvent(
                step=step.number,
                loss=step.result.loss,
                bits_per_token=step.result.loss / math.log(2),
                grad_norm=step.result.grad_norm,
                learning_rate=step.learning_rate,
                tokens=step.tokens,
                tokens_per_second=tokens_per_second,
                step_seconds=seconds,
                data_wait_seconds=step.waited,
                peak_memory_bytes=self._device.peak_memory_bytes(),
                mfu=self._utilization(tokens_per_second),
            )
        )

    def _utilization(self, tokens_per_second: float) -> float | None:
        """MFU: the fraction of the devices' peak FLOP/s that the model uses; None if the peak is unknown."""
        if self._peak_flops is None:
            return None
        return tokens_per_second * self._flops / (self._layout.world_size * self._peak_flops)
