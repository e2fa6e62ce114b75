"""Faults inside a rank, around the real methods of its process."""

import math
import time
from typing import Any


def poison(step: int) -> None:
    """From now on an engine of this process has a gradient of NaN for one weight in step number `step`.

    It is one that all tensor parallel ranks hold: only the first rank's gradient of it counts in the norm.
    """
    from brt_dist.model.parameters import logical_parameters
    from brt_dist.parallel import engine as module
    from brt_dist.parallel.engine import Engine

    current = [0]
    train_step: Any = Engine.train_step

    def counted(engine: Any, given: Any, *arguments: Any) -> Any:
        current[0] = given.number
        return train_step(engine, given, *arguments)

    Engine.train_step = counted  # type: ignore[method-assign]
    initialize: Any = module._initialize

    def poisoned(stage: Any, *arguments: Any) -> Any:
        parameters = [p for name, owner in stage.logical_modules() for p in logical_parameters(owner, name)]
        weight = next(p.local for p in parameters if p.partition_dim is None)
        # before the engine's own hooks, as a fault in backward would be
        weight.register_hook(lambda grad: grad * math.nan if current[0] == step else None)
        return initialize(stage, *arguments)

    module._initialize = poisoned


def slow_down(seconds: float) -> None:
    """Every step of this process takes `seconds` longer."""
    from brt_dist.parallel.engine import Engine

    train_step: Any = Engine.train_step

    def slower(engine: Any, *arguments: Any) -> Any:
        time.sleep(seconds)
        return train_step(engine, *arguments)

    Engine.train_step = slower  # type: ignore[method-assign]
