"""What the rows of a table cost, according to the plan."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from brt_dist.planning.layout_plan import LayoutPlan, Planner
from launch.reproduce.kit import Row
from launch.run.sizes import device_in, on_devices
from launch.views.tables import size
from pipelines.tables import table, text_of


@dataclass(frozen=True)
class RowCost:
    """What one seed of a row costs.

    Attributes:
        parameters: of the whole model, token embedding included.
        plan: on the devices of its layout.
    """

    name: str
    parameters: int
    plan: LayoutPlan

    @property
    def device_hours(self) -> float:
        return self.plan.days * 24 * self.plan.parallel.world_size

    @property
    def step_seconds(self) -> float:
        return self.plan.time.total

    def to_json(self) -> dict[str, Any]:
        plan = self.plan
        return {
            "parameters": self.parameters,
            "step_seconds": self.step_seconds,
            "tokens": plan.steps * plan.tokens,
            "device": plan.device.name,
            "devices": plan.parallel.world_size,
            "device_hours": self.device_hours,
            "cost": plan.cost,
            "problem": plan.problem,
        }


def cost_of(row: Row, vocabulary: int, device: str, more: Sequence[str] = ()) -> RowCost:
    """Plan a row.

    Args:
        row: to train.
        vocabulary: its size.
        device: its name.
        more: settings for all rows.

    Raises:
        ConfigError: the row breaks a rule.
    """
    config = row.config([f"model.vocab_size={vocabulary}", *more])
    spec = device_in(device, config.parallel.world_size)
    planner = Planner(config, spec)
    plan = planner.plan(on_devices(config, config.parallel.world_size, spec))
    return RowCost(row.name, planner.parameters, plan)


def cost_text(costs: Sequence[RowCost], seeds: int) -> str:
    """The plan as text: each row, and the whole table."""
    plan, hours = costs[0].plan, seeds * sum(cost.device_hours for cost in costs)
    cells = [
        (
            cost.name,
            f"{cost.parameters / 1e6:,.2f}M",
            f"{cost.plan.tokens:,}",
            f"{cost.step_seconds:.3f} s",
            size(cost.plan.memory.device),
            _hours(seeds * cost.device_hours),
            "-" if cost.plan.cost is None else f"${seeds * cost.plan.cost:,.0f}",
        )
        for cost in costs
    ]
    head = ("row", "parameters", "tokens a step", "step", "memory", "device hours", "price")
    tokens = plan.steps * plan.tokens
    lines = [
        f"{plan.steps:,} steps, {tokens:,} tokens, {seeds} seed{'s' if seeds > 1 else ''} for each row",
        f"on {plan.parallel.world_size} x {plan.device.name} ({plan.device.source})",
        text_of(table(head, cells, right=head[1:])),
        f"in all  {_hours(hours)} {short_name(plan)} hours{price_text(costs, seeds)}",
    ]
    return "\n".join(lines)


def _hours(hours: float) -> str:
    return f"{hours:.2g}" if hours < 10 else f"{hours:,.0f}"


def price_text(costs: Sequence[RowCost], seeds: int) -> str:
    prices = [cost.plan.cost for cost in costs if cost.plan.cost is not None]
    return f", ${seeds * sum(prices):,.0f} at ${costs[0].plan.device.price}/h" if len(prices) == len(costs) else ""


def short_name(plan: LayoutPlan) -> str:
    """`H100` of `NVIDIA H100 80GB HBM3`."""
    words = plan.device.name.removeprefix("NVIDIA ").removeprefix("AMD Instinct ").split()
    return words[0].upper() if words else plan.device.name


def step_ratio(costs: Mapping[str, RowCost], name: str, reference: str) -> float | None:
    """Planned time of a step, relative to the reference row."""
    if name not in costs or reference not in costs:
        return None
    return costs[name].step_seconds / costs[reference].step_seconds
