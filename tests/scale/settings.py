"""Configs of the tests in this folder: a small model on a layout of any size."""

from typing import Any

from brt_dist.config.schema import Config


def small(
    parallel: dict[str, Any] | None = None,
    precision: str = "bf16",
    optimizer: dict[str, Any] | None = None,
    micro_batches: int = 2,
    layers: int = 4,
    **run: Any,
) -> Config:
    """Layers of width 32, the one before the last recurrent; segments of 32 tokens."""
    layout = {"micro_batch": 1} | (parallel or {})
    streams = layout.get("data", 1) * layout["micro_batch"] * micro_batches
    return Config.model_validate(
        {
            "model": {"layers": layers, "width": 32, "heads": 4, "head_dim": 8, "window": 16, "dropout": 0.0,
                      "vocab_size": 64, "mlp_width": 64, "states": 8},
            "data": {"dataset": "unused", "segment": 32, "streams": streams},
            "parallel": layout,
            "optimizer": optimizer or {"name": "adamw"},
            "run": {"directory": "unused", "steps": 10, "precision": precision, **run},
        }
    )  # fmt: skip
