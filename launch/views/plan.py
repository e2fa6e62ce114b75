"""What `brt plan` prints: memory and time by part, with bars; and the table of a search."""

from collections.abc import Iterator

from brt_dist.planning.layout_plan import LayoutPlan, Planner, layout_json, layout_words
from brt_dist.planning.search import Ranked
from launch.views.tables import size
from pipelines.tables import table, text_of

_BAR = 24  # characters of a full bar
_LABELS = {
    "optimizer": "optimizer state",
    "masters": "float32 masters",
    "streams": "memory of streams",
    "tensor": "tensor parallel, exposed",
    "pipeline": "between stages",
    "reduce": "reduce gradients, exposed",
    "gather": "gather weights",
    "launches": "waiting for launches",
}


def plan_text(planner: Planner, plan: LayoutPlan) -> str:
    """A plan as text."""
    return "\n\n".join(
        part for part in (_model(planner, plan), _memory(plan), _stages(plan), _time(plan), _whole(plan)) if part
    )


def search_text(found: Ranked, most: int) -> str:
    """The first layouts that fit, why each is not the first, and the nearest that do not fit."""
    rows = [
        (f"{number}", layout(plan), f"{plan.time.total:.2f} s", f"{plan.mfu:.1%}", size(plan.memory.device),
         found.why_not_first(plan))
        for number, plan in enumerate(found.plans[:most], 1)
    ]  # fmt: skip
    rows += [("-", layout(plan), "", "", size(plan.memory.device), str(plan.problem)) for plan in found.oversize[:3]]
    head = ("", "layout", "step", "MFU", "memory", "why")
    counts = f"{len(found.plans)} layouts fit, {len(found.oversize)} do not"
    return f"{text_of(table(head, rows, right=('step', 'MFU', 'memory')))}\n{counts}"


def layout(plan: LayoutPlan) -> str:
    """A layout in short: `tp4 pp4 dp16 zero1 mb1 sequence recompute=layer`."""
    parallel = plan.parallel
    parts = [f"tp{parallel.tensor} pp{parallel.pipeline} dp{parallel.data} zero{parallel.zero_stage}"]
    parts.append(f"mb{parallel.micro_batch}")
    parts += ["sequence"] if parallel.sequence_parallel else []
    parts += [] if parallel.recompute == "none" else [f"recompute={parallel.recompute}"]
    parts += ["streams=host"] if parallel.stream_memory == "host" else []
    parts += [] if parallel.zero.offload_optimizer == "none" else [f"optimizer={parallel.zero.offload_optimizer}"]
    return " ".join(parts)


def _model(planner: Planner, plan: LayoutPlan) -> str:
    device = plan.device
    rows = [
        ("model", f"{planner.parameters / 1e9:.3g} billion parameters, {planner.flops_per_token:.3g} FLOP per token"),
        ("layout", layout_words(layout_json(plan.parallel))),
        ("devices", f"{plan.parallel.world_size} x {device.name} ({device.source})"),
    ]
    return text_of(table(("", ""), rows))


def _memory(plan: LayoutPlan) -> str:
    title = f"memory of a device, stage {plan.fullest}" if len(plan.stages) > 1 else "memory of a device"
    parts = [(name, part) for name, part in plan.memory.parts() if part]
    total = plan.memory.device
    rows = [(f"  {_LABELS.get(name, name)}", size(part), _bar(part, total)) for name, part in parts]
    rows.append(("  total", size(total), f"{total / plan.device.room:.0%} of {size(int(plan.device.room))}"))
    if plan.host:
        rows.append(("  host memory of a node", size(plan.host), f"of {size(int(plan.device.host_memory))}"))
    head = f"{title}: {'fits' if plan.problem is None else 'does not fit'}"
    return f"{head}\n{text_of(table(('', '', ''), rows))}"


def _stages(plan: LayoutPlan) -> str:
    if len(plan.stages) == 1:
        return ""
    most = plan.memory.device
    rows = [(f"  {stage}", size(one.device), _bar(one.device, most)) for stage, one in enumerate(plan.stages)]
    return f"peak by stage\n{text_of(table(('', '', ''), rows))}"


def _time(plan: LayoutPlan) -> str:
    found = plan.time.to_json()
    total = found.pop("total")
    rows = [
        (f"  {_LABELS.get(name, name)}", f"{seconds:.3f} s", _bar(seconds, total))
        for name, seconds in found.items()
        if seconds / total >= 1e-4
    ]
    rows.append(("  total", f"{total:.3f} s", ""))
    return f"time of a step\n{text_of(table(('', '', ''), rows))}"


def _whole(plan: LayoutPlan) -> str:
    return text_of(table(("", ""), list(_facts(plan))))


def _facts(plan: LayoutPlan) -> Iterator[tuple[str, str]]:
    found = plan.to_json()
    yield "speed", f"{plan.tokens_per_second:,.0f} tokens/s, MFU {plan.mfu:.1%}"
    tokens = plan.steps * plan.tokens
    yield "run", f"{plan.steps:,} steps, {tokens / 1e9:,.1f} billion tokens, {_length(plan.days)}"
    yield (
        "cost",
        "price unknown; give --price"
        if plan.cost is None
        else f"${plan.cost:,.0f}, at ${plan.device.price:.2f} per device and hour",
    )
    saved = f"{size(int(plan.saved))} every {plan.checkpoint_every:,} steps"
    if plan.device.disk_rate is not None:
        nodes = max(plan.parallel.world_size // plan.device.devices_per_node, 1)
        saved += f", {plan.saved / nodes / plan.device.disk_rate:,.1f} s to this machine's disk"
    yield "checkpoints", f"{saved}, {size(int(found['checkpoint_bytes_per_second']))}/s"
    yield "data", f"{size(int(found['data_bytes_per_second']))}/s at most"


def _bar(part: float, whole: float) -> str:
    return "█" * max(round(_BAR * part / whole), 0) if whole else ""


def plan_row(plan: LayoutPlan) -> tuple[str, ...]:
    """Layout, memory, step, MFU, time and cost of a plan."""
    cost = "-" if plan.cost is None else f"${plan.cost:,.0f}"
    return (
        layout(plan),
        size(plan.memory.device),
        f"{plan.time.total:.2f} s",
        f"{plan.mfu:.1%}",
        _length(plan.days),
        cost,
    )


def _length(days: float) -> str:
    return f"{days:,.1f} days" if days >= 2 else f"{24 * days:.1f} hours"
