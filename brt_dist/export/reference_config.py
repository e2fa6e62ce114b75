"""Our model config <-> the settings of the reference implementation, as its weights are stored with them."""

import ast
from collections.abc import Mapping
from typing import Any

from brt_dist.config.schema import ModelConfig
from brt_dist.errors import CheckpointError

_SIZES = {"L": "layers", "D": "width", "H": "heads", "DH": "head_dim", "MLP": "mlp_width", "V": "vocab_size",
          "W": "window", "S": "states"}  # fmt: skip
_GATES = {"bias": "fixed", "lstm": "lstm"}


class UnsupportedKind(CheckpointError):
    """A network of the reference that does not exist here, or the other way round."""


def from_settings(settings: Mapping[str, Any]) -> ModelConfig:
    """Our config for the reference's settings: L, D, H, DH, MLP, V, W, S, rec, skip, single, gate, feedback, dstack.

    Raises:
        UnsupportedKind: the model does not have this kind.
        KeyError: a setting is missing.
    """
    if settings["gate"] not in _GATES:
        raise UnsupportedKind(f"gate {settings['gate']}")
    recurrent = ast.literal_eval(settings["rec"])
    return ModelConfig(
        **{ours: settings[theirs] for theirs, ours in _SIZES.items()},
        recurrent_layers=recurrent,
        cell="skip" if settings["skip"] else "single" if settings["single"] else "dual",
        gate=_GATES[settings["gate"]],
        # the reference only feeds back where it also runs the stack block by block
        feedback=bool(settings["feedback"] and settings["dstack"] and recurrent),
        dropout=0.0,
    )


def to_settings(model: ModelConfig) -> dict[str, Any]:
    """The reference's settings for our config.

    Raises:
        UnsupportedKind: the reference has no such network.
    """
    if model.positions != "t5":
        raise UnsupportedKind(
            f"the reference has no model.positions={model.positions}; nearest: `brt export --to safetensors`"
        )
    gates = {ours: theirs for theirs, ours in _GATES.items()}
    return {theirs: getattr(model, ours) for theirs, ours in _SIZES.items()} | {
        "rec": str(tuple(model.recurrent_layers)),
        "skip": model.cell == "skip" and bool(model.recurrent_layers),
        "single": model.cell == "single",
        "gate": gates[model.gate],
        "feedback": model.feedback,
        "dstack": model.window if model.feedback else 0,
    }
