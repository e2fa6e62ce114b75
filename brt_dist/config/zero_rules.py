"""Rules of `parallel.zero`: what DeepSpeed cannot combine."""

from collections.abc import Iterator

from brt_dist.config.schema import Config


def broken_zero_rules(config: Config) -> Iterator[str]:
    """A message for each broken rule, with the nearest values that work."""
    zero = config.parallel.zero
    if zero.reduce_dtype == "bf16" and config.run.precision == "fp32":
        yield (
            "parallel.zero.reduce_dtype=bf16 with run.precision=fp32 would round fp32 gradients; "
            "nearest: parallel.zero.reduce_dtype=fp32, or run.precision=bf16"
        )
