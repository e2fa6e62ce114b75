"""DeepSpeed's settings, derived from the config.  They cannot be set directly, so the config is the only source."""

from typing import Any

from brt_dist.config.schema import Config
from brt_dist.config.zero import BUCKET, ZeroConfig
from brt_dist.config.zero_rules import scatters_sums

_NEVER = 2**31 - 1


def deepspeed_config(config: Config) -> dict[str, Any]:
    """The dict for `deepspeed.initialize`.  The optimizer is passed in as an object, so it has no section here."""
    bf16, zero = config.run.precision == "bf16", config.parallel.zero
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": config.parallel.micro_batch,
        "gradient_accumulation_steps": config.micro_batches,
        "zero_optimization": {"stage": config.parallel.zero_stage, **_zero(zero)},
        "zero_allow_untested_optimizer": True,  # ours is
        "zero_force_ds_cpu_optimizer": False,  # DeepSpeed's own needs a compiler; torch's also updates on the host
        # sums each gradient as soon as it is computed, and drops it
        "bf16": {"enabled": bf16, "immediate_grad_update": scatters_sums(config)},
        "communication_data_type": zero.reduce_dtype,  # DeepSpeed's default is the type of the weights
        # 0: no clipping.  Without ZeRO the engine clips, because DeepSpeed would not report the norm.
        "gradient_clipping": (config.optimizer.clip_norm or 0.0) if config.parallel.zero_stage else 0.0,
        "steps_per_print": _NEVER,  # we print our own progress
        "wall_clock_breakdown": False,
        # it would wait for the device twice per micro-batch
        "timers": {"throughput": {"enabled": False, "synchronized": False}},
    }
    if config.parallel.tensor > 1:
        # By default each tensor parallel rank sends a slice of the activations, and the receivers put the slices
        # together.  That costs two gathers and two copies to the host per micro-batch, and is wrong with sequence
        # parallel, where each rank has its own tokens.
        settings["pipeline"] = {"pipe_partitioned": False, "grad_partitioned": False}
    if bf16:
        settings["data_types"] = {"grad_accum_dtype": "fp32"}
    return settings


def _zero(zero: ZeroConfig) -> dict[str, Any]:
    """DeepSpeed's names for `parallel.zero`."""
    settings: dict[str, Any] = {
        "reduce_bucket_size": zero.reduce_bucket or BUCKET,
        "allgather_bucket_size": zero.gather_bucket,
        "reduce_scatter": zero.reduce_scatter,
        "overlap_comm": zero.overlap,
        "contiguous_gradients": zero.contiguous_gradients,
        "zero_hpz_partition_size": zero.weights_within,
        "stage3_prefetch_bucket_size": zero.prefetch_bucket,
        "stage3_param_persistence_threshold": zero.persistent_below,
        "stage3_max_live_parameters": zero.most_live,
        "stage3_max_reuse_distance": zero.reuse_distance,
    }
    for key, place in (("offload_optimizer", zero.offload_optimizer), ("offload_param", zero.offload_parameters)):
        if place != "none":
            settings[key] = {"device": place, "pin_memory": zero.pin_memory}
    return settings
