"""The params of a run in MLflow: what shapes it.  Where it runs and how it is watched are tags, or in config.yaml."""

from collections.abc import Iterable

from brt_dist.config.guards import GuardsConfig
from brt_dist.config.loading import flatten
from brt_dist.config.schema import Config
from brt_dist.config.zero import ZeroConfig
from brt_dist.events import AttemptEvent, Event
from launch.run.dataset_record import dataset_name, dataset_tokens
from launch.run.redact import redact

_SHAPING = ("model.", "data.", "parallel.", "optimizer.", "run.", "launch.backend", "launch.nodes")
_ELSEWHERE = (
    "run.name",
    "run.directory",
    "run.tracking.",
    "run.allow",
    "run.keep_",
    "run.checkpoint",
    "run.log_every",
    "data.cache.",
)
# Sections with many settings that most runs leave at their defaults: only those that differ are logged.
_DEFAULTS = {"parallel.zero.": ZeroConfig(), "run.guards.": GuardsConfig()}


def params(config: Config) -> dict[str, str]:
    """Settings by key.  Unset ones, and sections that the run does not use, are left out."""
    flat = {
        key: value
        for key, value in flatten(config).items()
        if key.startswith(_SHAPING) and not key.startswith(_ELSEWHERE) and value not in (None, (), [], {})
    }
    for prefix, defaults in _DEFAULTS.items():
        usual = defaults.model_dump()
        for key in [key for key in flat if key.startswith(prefix)]:
            if flat[key] == usual.get(key.removeprefix(prefix)):
                del flat[key]
    return {key: redact(str(value)) for key, value in flat.items()}


def sizes(config: Config, events: Iterable[Event]) -> dict[str, str]:
    """Parameters, tokens and epochs of the whole run, once its plan is known."""
    plans = [event.plan for event in events if isinstance(event, AttemptEvent) and event.plan is not None]
    if not plans:
        return {}
    plan = plans[-1]
    tokens = plan.tokens_per_step * config.run.steps
    found = {"parameters": plan.parameters, "tokens_per_step": plan.tokens_per_step, "tokens": tokens}
    shown = {key: str(value) for key, value in found.items()}
    if (epochs := epochs_of(config, tokens)) is not None:
        shown["epochs"] = f"{epochs:.4g}"
    return shown


def epochs_of(config: Config, tokens: int) -> float | None:
    """How many epochs `tokens` tokens are; None for a mixture, or a dataset that is not on this machine."""
    if len(places := config.data.training) != 1 or (there := dataset_tokens(places[0][0])) is None:
        return None
    return tokens / there


def description(config: Config) -> str:
    """The run in a few lines of Markdown, for its page in MLflow."""
    model, data, run = config.model, config.data, config.run
    mixers = sorted({half.kind for key, half in model.halves() if key.startswith("model.mixers.")})
    places = [dataset_name(place) for place, _ in data.training]
    lines = [
        f"**{redact(run.name)}**: {model.depth} layers of width {model.width} ({', '.join(mixers)}), "
        f"window {model.window}, {run.precision}.",
        f"Trains for {run.steps:,} steps of {data.streams} streams x {data.segment} tokens on {', '.join(places)}.",
        f"Run directory: `{run.directory}`",
    ]
    return "\n\n".join(lines)
