"""All rules that involve more than one value.

:func:`check` finds every broken rule and raises one ConfigError.  It gives the reason and the nearest value that
works for each, and the nearest layout that works as a whole.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from brt_dist.config.halves import wrong_assignments
from brt_dist.config.keys import is_key, nearest_key
from brt_dist.config.launch_rules import broken_launch_rules, gpus_per_node
from brt_dist.config.older import respelled_key
from brt_dist.config.schema import Config, ModelConfig, ParallelConfig
from brt_dist.config.stages import stage_layers
from brt_dist.config.zero_rules import broken_zero_rules
from brt_dist.errors import ConfigError
from brt_dist.kinds import OBJECTIVES, OPTIMIZERS

_LARGEST_FACTOR = 1 << 14  # nothing is ever split into more parts than this


@dataclass(frozen=True)
class DatasetFacts:
    """What the rules need to know about a dataset.

    Attributes:
        documents: how many streams can read different documents at once (of a mixture, at its weights).
        vocab_size: vocabulary of its tokenizer.
        tokenizer_digest: sha256 of its tokenizer.
        longest: tokens of its longest document.
    """

    documents: int
    vocab_size: int
    tokenizer_digest: str
    longest: int = 2


def broken_rules(config: Config) -> list[str]:
    """What is wrong with a config, by rules that need no data; each with the nearest value that works."""
    return [*_broken(config), *(problem for rule in _OTHER_RULES for problem in rule(config))]


def check(config: Config, dataset: DatasetFacts | None = None, validation: DatasetFacts | None = None) -> None:
    """Check a config, and the datasets that it names if they are given.

    Raises:
        ConfigError: it breaks a rule; the message lists all that are broken.
    """
    problems = broken_rules(config)
    if dataset is not None:
        problems += _dataset(config, dataset, validation)
    if not problems:
        return
    text = "\n".join(f"  - {problem}" for problem in problems) if len(problems) > 1 else problems[0]
    if len(problems) > 1:
        text = f"this config cannot run; {len(problems)} problems:\n{text}"
    if any(_broken(config)):
        text += f"\nnearest layout that works: {_layout_text(_with(config, nearest_layout(config)))}"
    raise ConfigError(text)


def layout_problems(config: Config) -> list[str]:
    """Broken rules of the layout (`parallel`), ZeRO's included; empty if the engine can run it."""
    return [*_broken(config), *broken_zero_rules(config)]


def nearest_layout(config: Config) -> ParallelConfig:
    """The layout nearest to the given one that breaks no layout rule.

    It uses as many of the given processes as possible; among those layouts, it is the one that changes least.  One
    process with one stream at a time always works.
    """
    works = (layout for layout in _candidates(config) if not any(_broken(_with(config, layout))))
    return min(works, key=lambda layout: _distance(config.parallel, layout))


def _candidates(config: Config) -> Iterator[ParallelConfig]:
    model, given, streams = config.model, config.parallel, config.data.streams
    world = given.world_size
    splits = [divisors(size, world) for size in _tensor_sizes(config).values()] or [{1}]
    for tensor in set.intersection(*splits):
        for pipeline in {1, given.pipeline, min(given.pipeline, model.layers)}:
            if tensor * pipeline > world:
                continue
            # as many data parallel ranks as there are processes for, or at most as many as requested
            room = world // (tensor * pipeline)
            for data in {max(divisors(streams, room)), max(divisors(streams, min(room, given.data)))}:
                sizes = {
                    "tensor": tensor,
                    "pipeline": pipeline,
                    "data": data,
                    "micro_batch": max(divisors(streams // data, given.micro_batch)),
                    "stage_layers": given.stage_layers if _stages_fit(model, pipeline, given.stage_layers) else (),
                }
                for stage in {given.zero_stage, 0, 1}:
                    for sequence_parallel in {given.sequence_parallel, False}:
                        rest = {"zero_stage": stage, "sequence_parallel": sequence_parallel}
                        yield given.model_copy(update=sizes | rest)


def divisors(number: int, limit: int) -> set[int]:
    """The divisors of `number` that are at most `limit`."""
    return {k for k in range(1, min(number, limit, _LARGEST_FACTOR) + 1) if number % k == 0}


# ---- rules of the layout: what divides what, and what the engine can do -------------------------------------


def _divisibility(config: Config) -> Iterator[str]:
    ranks = config.parallel.tensor
    for key, size in _tensor_sizes(config).items():
        if size % ranks:
            yield (
                f"{key}={size} cannot be split over parallel.tensor={ranks} ranks; "
                f"nearest: parallel.tensor={max(divisors(size, ranks))} or {key}={_nearest_multiple(size, ranks)}"
            )


def _tensor_sizes(config: Config) -> dict[str, int]:
    """Sizes that tensor parallelism divides, by config key."""
    sizes: dict[str, int] = {}
    for key, half in config.model.halves():
        sizes.update(half.tensor_sizes(config.model, key))
    return sizes


def _streams(config: Config) -> Iterator[str]:
    streams, layout = config.data.streams, config.parallel
    portion = layout.data * layout.micro_batch
    fits = streams % layout.micro_batch == 0 and streams >= portion
    if streams % portion and not (layout.uneven_streams and fits):
        otherwise = ""
        if fits:
            idle = 1 - streams / (config.micro_batches * portion)
            otherwise = f", or parallel.uneven_streams=true, with {idle:.0%} of the micro-batches idle"
        yield (
            f"data.streams={streams} must be a multiple of parallel.data*parallel.micro_batch = "
            f"{layout.data}*{layout.micro_batch} = {portion}, because every rank holds equally many streams; "
            f"nearest: data.streams={_nearest_multiple(streams, portion)}{otherwise}"
        )


def _pipeline(config: Config) -> Iterator[str]:
    layers, layout = config.model.layers, config.parallel
    if layout.pipeline > layers:
        yield (
            f"parallel.pipeline={layout.pipeline} stages for model.layers={layers}: every stage needs a layer; "
            f"nearest: parallel.pipeline={layers}"
        )
    if layout.pipeline > 1 and layout.zero_stage in (2, 3):
        yield (
            f"parallel.zero_stage={layout.zero_stage} with parallel.pipeline={layout.pipeline}: DeepSpeed's pipeline "
            "keeps whole gradients, so ZeRO 2 and 3 do not work with it; nearest: parallel.zero_stage=1, or "
            "parallel.pipeline=1"
        )
    if layout.pipeline > 1 and layout.zero_stage == 0:
        yield (
            "parallel.zero_stage=0 with a pipeline: without ZeRO, the first and last stage's copies of the tied "
            "embedding drift apart; nearest: parallel.zero_stage=1"
        )
    if layout.pipeline > 1 and config.model.repeat > 1:
        yield (
            f"parallel.pipeline={layout.pipeline} with model.repeat={config.model.repeat}: a micro-batch would pass "
            "through all stages again for each repeat; nearest: parallel.pipeline=1, or model.repeat=1"
        )
    if layout.pipeline > 1 and config.model.feedback:
        yield (
            f"parallel.pipeline={layout.pipeline} with model.feedback=true: the first layers attend to the state that "
            "a later layer computed for the previous block, so each block would have to pass through all stages before "
            "the next one could start; "
            "nearest: parallel.pipeline=1, or model.feedback=false"
        )


def _stage_layers(config: Config) -> Iterator[str]:
    counts, stages = config.parallel.stage_layers, config.parallel.pipeline
    if not counts or _stages_fit(config.model, stages, counts) or stages > config.model.layers:
        return
    unset = config.parallel.model_copy(update={"stage_layers": ()})
    nearest = [len(layers) for layers in stage_layers(config.model_copy(update={"parallel": unset}))]
    yield (
        f"parallel.stage_layers={list(counts)} is {len(counts)} stages with {sum(counts)} layers, but "
        f"parallel.pipeline={stages} and model.layers={config.model.layers}; nearest: parallel.stage_layers={nearest}, "
        "which is what a run without it has"
    )


def _stages_fit(model: ModelConfig, stages: int, counts: tuple[int, ...]) -> bool:
    return len(counts) == stages and sum(counts) == model.layers


def _optimizer_layout(config: Config) -> Iterator[str]:
    optimizer, stage = config.optimizer, config.parallel.zero_stage
    if stage in optimizer.refused_zero_stages:
        reason = optimizer.refused_zero_stages[stage]
        works = min({0, 1, 2, 3} - optimizer.refused_zero_stages.keys(), key=lambda other: (abs(other - stage), other))
        others = [name for name, kind in OPTIMIZERS.items() if stage not in kind.refused_zero_stages]
        yield (
            f"optimizer.name={optimizer.name} with parallel.zero_stage={stage}: {reason}; "
            f"nearest: parallel.zero_stage={works}, or optimizer.name={' or '.join(others)}"
        )


def _zero(config: Config) -> Iterator[str]:
    if config.parallel.zero_stage == 0 and config.run.precision == "bf16":
        yield (
            "parallel.zero_stage=0 with run.precision=bf16: DeepSpeed cannot accumulate gradients in fp32 without "
            "ZeRO; "
            "nearest: parallel.zero_stage=1"
        )


def _sequence_parallel(config: Config) -> Iterator[str]:
    ranks = config.parallel.tensor
    if not config.parallel.sequence_parallel:
        return
    if ranks == 1:
        yield (
            "parallel.sequence_parallel=true with parallel.tensor=1: the sequence is split over the tensor parallel "
            "ranks, and there is only one; nearest: parallel.sequence_parallel=false"
        )
    # with feedback the stack runs on one block at a time
    sizes = {"model.window": config.model.window} if config.model.feedback else {"data.segment": config.data.segment}
    for key, half in config.model.halves():
        sizes.update(half.sequence_sizes(config.model, key))
    for name, size in sizes.items():
        if size % ranks:
            yield (
                f"{name}={size} cannot be split over parallel.tensor={ranks} ranks, as sequence parallel requires; "
                f"nearest: {name}={_nearest_multiple(size, ranks)}, or parallel.sequence_parallel=false"
            )


def _nodes(config: Config) -> Iterator[str]:
    nodes, world = config.launch.nodes, config.parallel.world_size
    if world % nodes:
        yield (
            f"{world} processes (parallel.tensor*pipeline*data) cannot be spread evenly over launch.nodes={nodes}; "
            f"nearest: launch.nodes={max(divisors(world, nodes))}"
        )
    tensor, ranks = config.parallel.tensor, world // nodes
    if world % nodes == 0 and ranks % tensor and gpus_per_node(config):
        yield (
            f"parallel.tensor={tensor} does not divide the {ranks} ranks of each of launch.nodes={nodes} nodes, so "
            "every layer would reduce its activations over the network; "
            f"nearest: parallel.tensor={max(divisors(ranks, tensor))}"
        )


# ---- the other rules ----------------------------------------------------------------------------------------


def _segment(config: Config) -> Iterator[str]:
    segment, window = config.data.segment, config.model.window
    if segment % window:
        yield (
            f"data.segment={segment} must be a multiple of model.window={window} (a segment is made of whole blocks); "
            f"nearest: data.segment={_nearest_multiple(segment, window)}"
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
    yield from objective.broken_rules(config)


def _objective_layout(config: Config) -> Iterator[str]:
    yield from OBJECTIVES[config.model.objective].broken_layout_rules(config)


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
            yield f"run.allow: {given!r} is no key of the config{nearest_key(Config, Config, '', given)}"


def _folders(config: Config) -> Iterator[str]:
    run = config.run.directory
    places = [("dataset", config.data.dataset), ("validation", config.data.validation)]
    places += [("mixture", part.dataset) for part in config.data.mixture]
    for name, folder in places:
        if isinstance(folder, Path) and run.resolve() == folder.resolve():
            yield f"run.directory and data.{name} are the same folder, {run}; nearest: run.directory={run / 'run'}"


def _training_data(config: Config) -> Iterator[str]:
    data = config.data
    if data.dataset is None and not data.mixture:
        yield "data.dataset is missing (folder or URL of the training dataset); for several datasets, set data.mixture"
    if data.dataset is not None and data.mixture:
        yield (
            f"data.dataset={data.dataset} and data.mixture are both set; nearest: only data.mixture, with "
            f"{{dataset: {data.dataset}, weight: ...}} added to it"
        )
    places = [str(part.dataset) for part in data.mixture]
    twice = sorted({place for place in places if places.count(place) > 1})
    if twice:
        yield f"data.mixture lists {twice[0]} more than once; nearest: one item with the sum of the weights"


def _training(config: Config) -> str:
    return f"the dataset {config.data.dataset}" if config.data.dataset is not None else "data.mixture"


def _dataset(config: Config, dataset: DatasetFacts, validation: DatasetFacts | None) -> Iterator[str]:
    expected = config.model.with_tokens(dataset.vocab_size).vocab_size or 0
    if config.model.vocab_size not in (None, expected):
        objective, added = config.model.objective, expected - dataset.vocab_size
        more = f" and model.objective={objective} adds {added}" if added else ""
        yield (
            f"model.vocab_size={config.model.vocab_size}, but {_training(config)} has "
            f"{dataset.vocab_size} tokens in its vocabulary{more}; nearest: model.vocab_size={expected}"
        )
    if dataset.documents < config.data.streams:
        yield (
            f"data.streams={config.data.streams}, but {_training(config)} has {dataset.documents} documents"
            + (" before one repeats at these weights" if config.data.mixture else "")
            + ", and every stream needs its own; "
            + (f"nearest: {_fitting_streams(config, dataset)}" if dataset.documents else "it is empty")
        )
    for facts, name in ((dataset, _training(config)), (validation, f"data.validation {config.data.validation}")):
        if facts is not None and facts.documents and facts.longest < 2:
            yield f"{name}: no document has two tokens or more, so there is nothing to predict"
    if validation is not None and validation.tokenizer_digest != dataset.tokenizer_digest:
        yield (
            f"data.validation {config.data.validation} was built with a different tokenizer "
            f"({validation.tokenizer_digest[:12]}) from that of {_training(config)} "
            f"({dataset.tokenizer_digest[:12]}); rebuild it with the tokenizer of the training data"
        )


_Rule = Callable[[Config], Iterator[str]]
_LAYOUT_RULES: tuple[_Rule, ...] = (
    _divisibility,
    _streams,
    _pipeline,
    _stage_layers,
    _zero,
    _optimizer_layout,
    _sequence_parallel,
    _objective_layout,
    _nodes,
)
_OTHER_RULES: tuple[_Rule, ...] = (
    _training_data,
    _segment,
    _assignment,
    _feedback,
    _objective,
    _halves,
    _optimizer,
    _folders,
    _allowed,
    broken_zero_rules,
    broken_launch_rules,
)


# ---- helpers ------------------------------------------------------------------------------------------------


def _broken(config: Config) -> Iterator[str]:
    """Broken rules of the layout."""
    for rule in _LAYOUT_RULES:
        yield from rule(config)


def _with(config: Config, layout: ParallelConfig) -> Config:
    """`config` on another layout, with as many of its nodes as divide the processes."""
    nodes = max(divisors(layout.world_size, config.launch.nodes))
    launch = config.launch.model_copy(update={"nodes": nodes})
    return config.model_copy(update={"parallel": layout, "launch": launch})


def _distance(given: ParallelConfig, layout: ParallelConfig) -> tuple[int, float]:
    """Sort key: idle processes first, then how many sizes change and by how much."""
    pairs = [(getattr(given, name), getattr(layout, name)) for name in ("tensor", "pipeline", "data", "micro_batch")]
    change = sum(max(pair) / min(pair) - 1 for pair in pairs)
    # of the ZeRO stages that work, prefer 1: it costs nothing and saves memory
    stage = {given.zero_stage: 0.0, 1: 0.5}.get(layout.zero_stage, 0.6)
    split = 0.1 * (given.sequence_parallel != layout.sequence_parallel)  # the numbers do not depend on it
    return given.world_size - layout.world_size, change + stage + split


def _layout_text(config: Config) -> str:
    names = ("tensor", "pipeline", "data", "zero_stage", "micro_batch")
    text = " ".join(f"parallel.{name}={getattr(config.parallel, name)}" for name in names)
    for name in ("sequence_parallel", "uneven_streams"):
        text += f" parallel.{name}=true" if getattr(config.parallel, name) else ""
    return text + (f" launch.nodes={config.launch.nodes}" if config.launch.nodes > 1 else "")


def _nearest_multiple(value: int, of: int) -> int:
    return max((value + of // 2) // of, 1) * of


def _fitting_streams(config: Config, dataset: DatasetFacts) -> str:
    """As many streams as there are documents for, with what else must change for that, as settings."""
    layout, most = config.parallel, dataset.documents
    if most >= layout.data * layout.micro_batch:
        portion = layout.data * layout.micro_batch
        return f"data.streams={most // portion * portion}"
    ranks = min(layout.data, most)
    each = most // ranks
    settings = [f"data.streams={each * ranks}", f"parallel.micro_batch={max(divisors(each, layout.micro_batch))}"]
    return ", ".join(settings + ([f"parallel.data={ranks}"] if ranks != layout.data else []))


def _listed(numbers: tuple[int, ...] | list[int]) -> str:
    return ", ".join(str(number) for number in numbers)
