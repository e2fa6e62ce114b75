"""The timeline of a planned pipeline: one HTML file that needs no network."""

from pathlib import Path

from brt_dist.files import write_atomic
from brt_dist.planning.layout_plan import LayoutPlan, Planner, layout_json, layout_words
from brt_dist.planning.simulator.instructions import Kind
from brt_dist.planning.simulator.step import Interval, simulate_step
from brt_dist.planning.step_time import stage_seconds
from launch.report.templates import render

_PER_STAGE = 4  # micro-batches that are drawn for each stage; more look alike
_WIDTH, _ROW, _GAP, _LEFT = 1240.0, 30, 8, 70
_COLOURS = {Kind.FORWARD: "forward", Kind.BACKWARD: "backward", Kind.UPDATE: "update"}
_NAMES = {"forward": "forward", "backward": "backward", "update": "update", "sent": "communication"}


def write_timeline(planner: Planner, plan: LayoutPlan, path: Path) -> None:
    """Simulate a step of a plan, and write who computes, sends or waits when.  Imports DeepSpeed, whose schedule it is.

    A step with many micro-batches is drawn with `_PER_STAGE` for each stage.
    """
    stages = stage_seconds(planner.sizes, plan.parallel, plan.device, plan.stages)
    count = planner.sizes.on(plan.parallel).micro_batches
    drawn = min(count, _PER_STAGE * len(stages))
    step = simulate_step(stages, drawn)
    scale = _WIDTH / step.seconds
    bars = [_bar(one, scale) for one in step.intervals if one.seconds > 0]
    rows = [(stage, stage * (_ROW + _GAP), plan.stages[stage].device / 1e9) for stage in range(len(stages))]
    text = render(
        "timeline.html.jinja",
        title=planner.config.run.name,
        layout=layout_words(layout_json(plan.parallel)),
        device=plan.device.name,
        devices=plan.parallel.world_size,
        seconds=plan.time.total,
        drawn=drawn,
        count=count,
        drawn_seconds=step.seconds,
        idle=step.bubble,
        bars=bars,
        rows=rows,
        names=_NAMES,
        left=_LEFT,
        row=_ROW,
        width=_LEFT + _WIDTH,
        height=len(stages) * (_ROW + _GAP) + 24,
        ticks=[(_LEFT + _WIDTH * part / 10, step.seconds * part / 10) for part in range(11)],
        parts=[(name, f"{value:.3f} s", f"{value / plan.time.total:.1%}") for name, value in _parts(plan)],
        memory=[(name, f"{value / 1e9:.2f} GB") for name, value in plan.memory.parts() if value],
    )
    write_atomic(path, text)


def _bar(one: Interval, scale: float) -> tuple[str, float, float, float, str]:
    """Class, x, y, width and tooltip of an interval."""
    colour = _COLOURS.get(one.kind, "sent")
    of = "" if one.micro_batch is None else f", micro-batch {one.micro_batch}"
    said = f"stage {one.stage}: {one.kind}{of}, {one.begin:.4f} to {one.end:.4f} s"
    return colour, _LEFT + one.begin * scale, one.stage * (_ROW + _GAP), max(one.seconds * scale, 0.3), said


def _parts(plan: LayoutPlan) -> list[tuple[str, float]]:
    found = plan.time.to_json()
    return [(name, value) for name, value in found.items() if name != "total" and value / plan.time.total >= 1e-4]
