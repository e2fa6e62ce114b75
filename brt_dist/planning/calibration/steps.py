"""Steps of the training engine, by part, which the plan is fitted to."""

from collections.abc import Iterator
from statistics import median

import torch

from brt_dist.config.schema import Config
from brt_dist.parallel.device import Device
from brt_dist.parallel.engine import build_engine
from brt_dist.parallel.layout import Layout, agree
from brt_dist.parallel.micro_batches import StepInput
from brt_dist.planning.calibration.fitting import MeasuredStep, StepShape

_WARM_UP, _FEWEST, _MOST = 2, 4, 20  # steps


def measured_step(
    config: Config, shape: StepShape, rank: int, device: Device, seconds: float, fewest: int = _FEWEST
) -> MeasuredStep:
    """Medians over as many steps as fit into the given seconds, of the rank that computes longest.  Collective."""
    layout = Layout.of(config, rank)
    engine = build_engine(config, layout, device)
    parts: list[dict[str, float]] = []
    count = _WARM_UP + fewest
    for number, given in enumerate(_inputs(config, layout, device), 1):
        agree((0.0,), device)  # begin together
        with engine.timed() as timer:
            engine.train_step(given, 1e-4)
        device.synchronize()
        parts.append(timer.parts())
        if number == _WARM_UP:
            (took,) = agree((sum(parts[-1].values()),), device)
            count = _WARM_UP + min(max(int(seconds / took), fewest), _MOST)
        if number == count:
            break
    engine.close()
    known = parts[_WARM_UP:]
    compute = median(each["forward"] + each["backward"] + each.get("tensor", 0.0) for each in known)
    return MeasuredStep(shape, *agree((compute, median(each["update"] for each in known)), device))


def _inputs(config: Config, layout: Layout, device: Device) -> Iterator[StepInput]:
    """Random tokens, step after step."""
    streams, segment, blocks = len(layout.rows), config.data.segment, config.data.segment // config.model.window
    starts = torch.zeros(streams, blocks, dtype=torch.bool, device=device.torch)
    mask = torch.ones(streams, segment, dtype=torch.bool, device=device.torch)
    number = 0
    while number := number + 1:
        tokens = torch.randint(config.model.vocab_size or 0, (streams, segment + 1), device=device.torch)
        loss_tokens = config.data.streams * segment
        yield StepInput(number, starts, tokens[:, :-1], tokens[:, 1:], mask, loss_tokens)
