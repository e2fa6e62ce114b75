"""Keys of the config as earlier versions spelled them, put where they belong now.

Files with the older keys keep working: those that people wrote, and those that runs and checkpoints hold.
"""

from collections.abc import Callable
from typing import Any

# Until 0.1.0 every config had the keys of both optimizers, at these values where nothing else was given.
_OPTIMIZER_KEYS: dict[str, dict[str, Any]] = {
    "adamw": {"betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.0},
    "adafactor": {"momentum": 0.9, "decay_rate": 0.8},
}


def drop_optimizer_keys(
    optimizer: dict[str, Any], refuse: Callable[[str, str], None], value: Callable[[Any], Any] = lambda node: node
) -> dict[str, Any]:
    """`optimizer` without the keys of the other of the two optimizers of then.

    Args:
        refuse: called with such a key and the optimizer that has it, where it is not at its default.
        value: the plain value of an item.
    """
    name = value(optimizer["name"]) if "name" in optimizer else "adamw"
    if name not in _OPTIMIZER_KEYS:
        return optimizer
    kept = dict(optimizer)
    for other in _OPTIMIZER_KEYS.keys() - {name}:
        for key, unchanged in _OPTIMIZER_KEYS[other].items():
            if key in kept and value(kept.pop(key)) != unchanged:
                refuse(key, other)
    return kept
