"""All rules that involve more than one value: those of the model and the run are here.

:func:`check` finds every broken rule and raises one ConfigError.  It gives the reason and the nearest value that
works for each, and the nearest layout that works as a whole.
"""

from collections.abc import Callable, Iterator

from brt_dist.config.data_rules import DatasetFacts, broken_data_rules, broken_dataset_rules
from brt_dist.config.halves import wrong_assignments
from brt_dist.config.keys import is_key, nearest_key
from brt_dist.config.launch_rules import broken_launch_rules
from brt_dist.config.layout_rules import (
    broken_layout_rules,
    layout_text,
    nearest_layout,
    nearest_multiple,
    with_layout,
)
from brt_dist.config.older import respelled_key
from brt_dist.config.oracle import OracleConfig
from brt_dist.config.schema import Config
from brt_dist.config.zero_rules import broken_zero_rules
from brt_dist.errors import ConfigError
from brt_dist.kinds import OBJECTIVES


def broken_rules(config: Config) -> list[str]:
    """What is wrong with a config, by rules that need no data; each with the nearest value that works."""
    return [*broken_layout_rules(config), *(problem for rule in _RULES for problem in rule(config))]


def check(config: Config, dataset: DatasetFacts | None = None, validation: DatasetFacts | None = None) -> None:
    """Check a config, and the datasets that it names if they are given.

    Raises:
        ConfigError: it breaks a rule; the message lists all that are broken.
    """
    problems = broken_rules(config)
    if dataset is not None:
        problems += broken_dataset_rules(config, dataset, validation)
    if not problems:
        return
    text = "\n".join(f"  - {problem}" for problem in problems) if len(problems) > 1 else problems[0]
    if len(problems) > 1:
        text = f"this config cannot run; {len(problems)} problems:\n{text}"
    if any(broken_layout_rules(config)):
        text += f"\nnearest layout that works: {layout_text(with_layout(config, nearest_layout(config)))}"
    raise ConfigError(text)


def _segment(config: Config) -> Iterator[str]:
    segment, window = config.data.segment, config.model.window
    if segment % window:
        yield (
            f"data.segment={segment} must be a multiple of model.window={window} (a segment is made of whole blocks); "
            f"nearest: data.segment={nearest_multiple(segment, window)}"
        )
    if config.run.sample_tokens >= config.data.segment:
        yield (
            f"run.sample_tokens={config.run.sample_tokens} must be less than data.segment={config.data.segment}, "
            f"because a sample fits in one segment; nearest: run.sample_tokens={config.data.segment - 1}"
        )


def _assignment(config: Config) -> Iterator[str]:
    model = config.model
    yield from wrong_assignments(model.mixers, model.layers, "model.mixers")
    yield from wrong_assignments(model.ffns, model.layers, "model.ffns")


def _feedback(config: Config) -> Iterator[str]:
    model = config.model
    if model.feedback and not model.feeding_layers():
        feeding = next((name for name, mixer in model.mixers.items() if mixer.states_fed_back()), "recurrent")
        yield (
            "model.feedback=true, but no layer has a state to feed back; "
            f"nearest: model.mixers.{feeding}.layers=[-1], or model.feedback=false"
        )
    if model.feedback and model.repeat > 1:
        yield (
            f"model.feedback=true with model.repeat={model.repeat}: each run of the layer that feeds back has a "
            "state of its own; nearest: model.feedback=false, or model.repeat=1"
        )


def _objective(config: Config) -> Iterator[str]:
    objective, samples = OBJECTIVES[config.model.objective], config.run.sample_tokens
    if samples and not objective.continues_text:
        yield (
            f"run.sample_tokens={samples} with model.objective={config.model.objective}: a model that is trained "
            f"{objective.purpose} cannot continue text; nearest: run.sample_tokens=0"
        )
    if config.model.objective != "oracle" and config.model.oracle != OracleConfig():
        yield (
            f"model.oracle is set, but model.objective={config.model.objective} trains no heads; "
            "nearest: model.objective=oracle"
        )
    yield from objective.broken_rules(config)


def _halves(config: Config) -> Iterator[str]:
    for key, half in config.model.halves():
        yield from half.broken_rules(config, key)


def _optimizer(config: Config) -> Iterator[str]:
    steps, optimizer = config.run.steps, config.optimizer
    if optimizer.warmup_steps > steps:
        yield (
            f"optimizer.warmup_steps={optimizer.warmup_steps} is longer than the run (run.steps={steps}), so it would "
            f"never reach its peak learning rate; nearest: optimizer.warmup_steps={steps}"
        )
    yield from optimizer.broken_rules()


def _allowed(config: Config) -> Iterator[str]:
    for given in config.run.allow:
        if not is_key(Config, given) and not is_key(Config, respelled_key(given)):
            yield f"run.allow: {given!r} is not a key of the config{nearest_key(Config, Config, '', given)}"


_RULES: tuple[Callable[[Config], Iterator[str]], ...] = (
    broken_data_rules,
    _segment,
    _assignment,
    _feedback,
    _objective,
    _halves,
    _optimizer,
    _allowed,
    broken_zero_rules,
    broken_launch_rules,
)
