"""Rules of the layout: what divides what, what the engine can do, and the nearest layout that it can."""

from collections.abc import Callable, Iterator

from brt_dist.config.launch_rules import gpus_per_node
from brt_dist.config.schema import Config, ModelConfig, ParallelConfig
from brt_dist.config.stages import stage_layers
from brt_dist.config.zero_rules import broken_zero_rules
from brt_dist.kinds import OBJECTIVES, OPTIMIZERS

_LARGEST_FACTOR = 1 << 14  # nothing is ever split into more parts than this


def layout_problems(config: Config) -> list[str]:
    """Broken rules of the layout (`parallel`), ZeRO's included; empty if the engine can run it."""
    return [*broken_layout_rules(config), *broken_zero_rules(config)]


def nearest_layout(config: Config) -> ParallelConfig:
    """The layout nearest to the given one that breaks no layout rule.

    It uses as many of the given processes as possible; among those layouts, it is the one that changes least.  One
    process with one stream at a time always works.
    """
    works = (layout for layout in _candidates(config) if not any(broken_layout_rules(with_layout(config, layout))))
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


def _divisibility(config: Config) -> Iterator[str]:
    ranks = config.parallel.tensor
    for key, size in _tensor_sizes(config).items():
        if size % ranks:
            yield (
                f"{key}={size} cannot be split over parallel.tensor={ranks} ranks; "
                f"nearest: parallel.tensor={max(divisors(size, ranks))} or {key}={nearest_multiple(size, ranks)}"
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
            f"nearest: data.streams={nearest_multiple(streams, portion)}{otherwise}"
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
                f"nearest: {name}={nearest_multiple(size, ranks)}, or parallel.sequence_parallel=false"
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


def _objective_layout(config: Config) -> Iterator[str]:
    yield from OBJECTIVES[config.model.objective].broken_layout_rules(config)


_RULES: tuple[Callable[[Config], Iterator[str]], ...] = (
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


def broken_layout_rules(config: Config) -> Iterator[str]:
    """Broken rules of the layout."""
    for rule in _RULES:
        yield from rule(config)


def with_layout(config: Config, layout: ParallelConfig) -> Config:
    """`config` on another layout, with as many of its nodes as divide the processes."""
    nodes = max(divisors(layout.world_size, config.launch.nodes))
    launch = config.launch.model_copy(update={"nodes": nodes})
    return config.model_copy(update={"parallel": layout, "launch": launch})


def _distance(given: ParallelConfig, layout: ParallelConfig) -> tuple[int, float]:
    """Sort key: idle processes first, then how many sizes change and by how much."""
    pairs = [(getattr(given, name), getattr(layout, name)) for name in ("tensor", "pipeline", "data", "micro_batch")]
    change = sum(max(pair) / min(pair) - 1 for pair in pairs)
    # among the ZeRO stages that work, prefer 1: it costs nothing and saves memory
    stage = {given.zero_stage: 0.0, 1: 0.5}.get(layout.zero_stage, 0.6)
    split = 0.1 * (given.sequence_parallel != layout.sequence_parallel)  # the numbers do not depend on it
    return given.world_size - layout.world_size, change + stage + split


def layout_text(config: Config) -> str:
    """The layout as settings that a user can type."""
    names = ("tensor", "pipeline", "data", "zero_stage", "micro_batch")
    text = " ".join(f"parallel.{name}={getattr(config.parallel, name)}" for name in names)
    for name in ("sequence_parallel", "uneven_streams"):
        text += f" parallel.{name}=true" if getattr(config.parallel, name) else ""
    return text + (f" launch.nodes={config.launch.nodes}" if config.launch.nodes > 1 else "")


def nearest_multiple(value: int, of: int) -> int:
    """The multiple of `of` nearest to `value`; at least `of`."""
    return max((value + of // 2) // of, 1) * of
