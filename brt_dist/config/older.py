"""Translates config keys of earlier versions into the current ones.

Files with the older keys keep working, whether a user, a run or a checkpoint wrote them.  The same functions translate
the YAML tree (whose leaves know their place) and plain values.
"""

from collections.abc import Callable
from typing import Any

# until 0.1.0 every config had the keys of both optimizers, with these defaults
_OPTIMIZER_KEYS: dict[str, dict[str, Any]] = {
    "adamw": {"betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.0},
    "adafactor": {"momentum": 0.9, "decay_rate": 0.8},
}


def drop_optimizer_keys(
    optimizer: dict[str, Any], refuse: Callable[[str, str], None], value: Callable[[Any], Any] = lambda node: node
) -> dict[str, Any]:
    """`optimizer` without the keys of the other optimizer.

    Args:
        optimizer: the section.
        refuse: called with such a key and the optimizer that it belongs to, if its value is not the default.
        value: converts an item to a plain value.
    """
    name = value(optimizer["name"]) if "name" in optimizer else "adamw"
    if not isinstance(name, str) or name not in _OPTIMIZER_KEYS:
        return optimizer
    kept = dict(optimizer)
    for other in _OPTIMIZER_KEYS.keys() - {name}:
        for key, unchanged in _OPTIMIZER_KEYS[other].items():
            if key in kept and value(kept.pop(key)) != unchanged:
                refuse(key, other)
    return kept


DEFAULT_MIXERS: dict[str, Any] = {"window": {"kind": "window"}, "recurrent": {"kind": "recurrent"}}
DEFAULT_FFNS: dict[str, Any] = {"relu": {"kind": "relu"}}

# older key of the model section: where its value goes now
MODEL_KEYS: dict[str, tuple[str, ...]] = {
    "mlp_width": ("ffns.relu.width", "mixers.recurrent.mlp_width"),
    "recurrent_layers": ("mixers.recurrent.layers",),
    "states": ("mixers.recurrent.states",),
    "cell": ("mixers.recurrent.cell",),
    "gate": ("mixers.recurrent.gate",),
    "clear_state": ("mixers.recurrent.clear_state",),
    "state_dtype": ("mixers.recurrent.state_dtype",),
    "positions": ("mixers.window.positions", "mixers.recurrent.positions"),
    "attention_scale": ("mixers.window.attention_scale", "mixers.recurrent.attention_scale"),
}

OLDER_KEYS = tuple(f"model.{key}" for key in MODEL_KEYS)


def move_model_keys(
    model: dict[str, Any], refuse: Callable[[str, str], None], leaf: Callable[[Any], Any] = lambda value: value
) -> dict[str, Any]:
    """`model` with the values of older keys moved to their new places, among the mixers and FFNs that they implied.

    Args:
        model: the section.
        refuse: called with an older key and its new name if the new section is set as well.
        leaf: makes a leaf of the tree from a default value.
    """
    older = [key for key in MODEL_KEYS if key in model]
    if not older:
        return model
    moved = {key: value for key, value in model.items() if key not in MODEL_KEYS}
    if len(older) == len(MODEL_KEYS):  # 0.1.0 wrote it, for a run that must continue bit for bit
        moved.setdefault("attention_kernel", leaf("plain"))
    for root, implied in (("mixers", DEFAULT_MIXERS), ("ffns", DEFAULT_FFNS)):
        places = [(key, place.split(".")[1:]) for key in older for place in MODEL_KEYS[key] if place.startswith(root)]
        if not places:
            continue
        if root in model:
            for key, place in places:
                refuse(key, ".".join((root, *place)))
            continue
        sections = {name: {key: leaf(value) for key, value in section.items()} for name, section in implied.items()}
        for key, (name, inner) in places:
            sections[name][inner] = model[key]
        moved[root] = sections
    return moved


def respelled_model(given: dict[str, Any]) -> dict[str, Any]:
    """Plain values of the model section under their current names, each section with its kind.

    Raises:
        ValueError: an older key and the section that replaced it are both set.
    """

    def refuse(key: str, place: str) -> None:
        raise ValueError(f"{key} is the old name of {place}, and both are set")

    model = move_model_keys(given, refuse)
    for root in ("mixers", "ffns"):
        if isinstance(model.get(root), dict):
            sections = {
                name: {"kind": name, **(section or {})} if section is None or isinstance(section, dict) else section
                for name, section in model[root].items()
            }
            model = {**model, root: sections}
    # after a `before` validator pydantic validates Python values, and its strict mode refuses a list for a tuple
    return {key: _tuples(value) for key, value in model.items()}


def drop_zero_keys(zero: dict[str, Any], value: Callable[[Any], Any] = lambda node: node) -> dict[str, Any]:
    """`parallel.zero` without the folder for offloading to disk, which runs wrote (unset) while it was a key."""
    return {key: node for key, node in zero.items() if key != "nvme_folder" or value(node) is not None}


def respelled_recompute(given: Any) -> Any:
    """`parallel.recompute`, which originally was true or false."""
    return {True: "layer", False: "none"}[given] if isinstance(given, bool) else given


def respelled_key(key: str) -> str:
    """The current name of a dotted key, for example one in `run.allow`."""
    section, _, name = key.partition(".")
    return f"model.{MODEL_KEYS[name][-1]}" if section == "model" and name in MODEL_KEYS else key


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _tuples(inner) for key, inner in value.items()}
    return tuple(value) if isinstance(value, list) else value
