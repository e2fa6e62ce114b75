"""Rules of `parallel.zero`: what DeepSpeed cannot combine, and keys that would have no effect."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from brt_dist.config.zero import ZeroConfig

if TYPE_CHECKING:
    from brt_dist.config.schema import Config

# the stages at which a key has an effect; all but 0 if not listed
_STAGES: dict[str, tuple[int, ...]] = {
    "reduce_dtype": (0, 1, 2, 3),
    "gather_bucket": (1, 2),
    "offload_parameters": (3,),
    "weights_within": (3,),
    "prefetch_bucket": (3,),
    "persistent_below": (3,),
    "most_live": (3,),
    "reuse_distance": (3,),
}


def scatters_sums(config: "Config") -> bool:
    """Whether gradients are fp32 sums of bf16 values that we reduce to the rank that updates them: ZeRO-1 in bf16."""
    parallel = config.parallel
    return parallel.zero_stage == 1 and config.run.precision == "bf16" and parallel.zero.offload_optimizer == "none"


def broken_zero_rules(config: "Config") -> Iterator[str]:
    """A message for each broken rule, with the nearest values that work."""
    zero, stage, pipeline = config.parallel.zero, config.parallel.zero_stage, config.parallel.pipeline
    for key, field in ZeroConfig.model_fields.items():
        stages = _STAGES.get(key, (1, 2, 3))
        if getattr(zero, key) != field.default and stage not in stages:
            yield (
                f"parallel.zero.{key}={getattr(zero, key)} has no effect with parallel.zero_stage={stage}; nearest: "
                f"leave parallel.zero.{key} unset, or parallel.zero_stage={' or '.join(map(str, stages))}"
            )
    if zero.reduce_dtype == "bf16" and config.run.precision == "fp32":
        yield (
            "parallel.zero.reduce_dtype=bf16 with run.precision=fp32 would round fp32 gradients; "
            "nearest: parallel.zero.reduce_dtype=fp32, or run.precision=bf16"
        )
    if zero.overlap and pipeline > 1 and not scatters_sums(config):
        yield (
            f"parallel.zero.overlap=true with parallel.pipeline={pipeline}: DeepSpeed's pipeline reduces after the "
            "last backward, except ZeRO-1 in bf16; nearest: leave parallel.zero.overlap unset"
        )
    if config.parallel.data % zero.weights_within:
        yield (
            f"parallel.zero.weights_within={zero.weights_within} must divide parallel.data={config.parallel.data}; "
            f"nearest: parallel.zero.weights_within={_divisor(config.parallel.data, zero.weights_within)}"
        )
    yield from _offload(config)


def _offload(config: "Config") -> Iterator[str]:
    zero, pipeline = config.parallel.zero, config.parallel.pipeline
    if zero.offload_optimizer == "none":
        return
    if pipeline > 1:
        yield (
            f"parallel.zero.offload_optimizer={zero.offload_optimizer} with parallel.pipeline={pipeline}: DeepSpeed "
            "would not add up the gradients of the tied embedding's two copies; "
            "nearest: parallel.zero.offload_optimizer=none, or parallel.pipeline=1"
        )
    if not config.optimizer.is_elementwise:
        yield (
            f"parallel.zero.offload_optimizer={zero.offload_optimizer} with optimizer.name={config.optimizer.name}: "
            "its update sums over ranks, which only the device can do; "
            "nearest: parallel.zero.offload_optimizer=none, or optimizer.name=adamw"
        )


def _divisor(number: int, limit: int) -> int:
    return max(size for size in range(1, min(number, limit) + 1) if number % size == 0)
