"""How the loss of a run fell until a checkpoint, from the events beside it: for the model card."""

from dataclasses import dataclass
from pathlib import Path

from brt_dist.event_log import read_events
from brt_dist.events import EvaluationEvent, StepEvent
from brt_dist.files import is_url
from brt_dist.run_directory import RunDirectory

MOST_POINTS = 12


@dataclass(frozen=True)
class CurvePoint:
    """Bits per token at a step; None where it was not measured."""

    step: int
    training: float | None
    held_out: float | None


def curve_of(source: str, last_step: int) -> tuple[CurvePoint, ...]:
    """At most `MOST_POINTS` steps up to `last_step`, the last one among them; none if there is no run at `source`.

    Args:
        source: a run directory, or checkpoints in one.
        last_step: of the checkpoint.
    """
    if is_url(source):
        return ()
    path = Path(source).absolute()
    run = next((one for one in (path, *path.parents[:2]) if RunDirectory(one).is_run), None)
    if run is None or not RunDirectory(run).events.is_file():
        return ()
    training, held_out = dict[int, float | None](), dict[int, float | None]()
    for event in read_events(run):  # a later event of the same step counts
        if isinstance(event, StepEvent):
            training[event.step] = event.bits_per_token
        elif isinstance(event, EvaluationEvent) and (event.dataset, event.memory) == ("validation", "carried"):
            held_out[event.step] = event.bits_per_token
    steps = sorted(step for step in (held_out or training) if step <= last_step)
    count = min(MOST_POINTS, len(steps))
    chosen = [steps[(number + 1) * len(steps) // count - 1] for number in range(count)]
    return tuple(CurvePoint(step, training.get(step), held_out.get(step)) for step in chosen)
