"""Our model config <-> the settings of the reference implementation, as its weights are stored with them."""

import ast
from collections.abc import Mapping
from typing import Any

from brt_dist.config.schema import ModelConfig
from brt_dist.errors import CheckpointError
from brt_dist.model.ffn.relu import ReluFFN
from brt_dist.model.mixers.recurrent import RecurrentMixer
from brt_dist.model.mixers.window import AttentionMixer

_SIZES = {"L": "layers", "D": "width", "H": "heads", "DH": "head_dim", "V": "vocab_size", "W": "window"}
_GATES = {"bias": "fixed", "lstm": "lstm"}
_NEAREST = "nearest: `brt export --to safetensors`"


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
    sizes = {ours: settings[theirs] for theirs, ours in _SIZES.items()}
    width = settings["MLP"]
    cell = {
        "kind": "recurrent",
        "layers": recurrent,
        "states": settings["S"],
        "cell": "skip" if settings["skip"] else "single" if settings["single"] else "dual",
        "gate": _GATES[settings["gate"]],
        "mlp_width": width,
    }
    return ModelConfig(
        **sizes,
        mixers={"window": {"kind": "window"}, "recurrent": cell},
        ffns={"relu": {"kind": "relu", "width": width}},
        # the reference only feeds back where it also runs the stack block by block
        feedback=bool(settings["feedback"] and settings["dstack"] and recurrent),
        dropout=0.0,
    )


def to_settings(model: ModelConfig) -> dict[str, Any]:
    """The reference's settings for our config.

    Raises:
        UnsupportedKind: the reference has no such network.
    """
    if model.repeat > 1:
        raise UnsupportedKind(f"the reference has no model.repeat={model.repeat}; {_NEAREST}")
    mixers = [model.mixer_of(layer) for layer in range(model.layers)]
    for mixer in mixers:
        if not isinstance(mixer, AttentionMixer):
            raise UnsupportedKind(f"the reference has no {mixer.kind} mixer; {_NEAREST}")
        if mixer.positions != "t5":
            raise UnsupportedKind(f"the reference has no positions={mixer.positions}; {_NEAREST}")
    cells = [mixer for mixer in mixers if isinstance(mixer, RecurrentMixer)]
    ffns = {model.ffn_of(layer) for layer in range(model.layers)}
    ffn = ffns.pop()
    if not isinstance(ffn, ReluFFN) or ffns or any(cell != cells[0] for cell in cells):
        raise UnsupportedKind(f"the reference has one FFN, of kind relu, and one cell, for all layers; {_NEAREST}")
    unused = [mixer for mixer in model.mixers.values() if isinstance(mixer, RecurrentMixer)]
    cell = [*cells, *unused, RecurrentMixer()][0]
    gates = {ours: theirs for theirs, ours in _GATES.items()}
    sizes = {theirs: getattr(model, ours) for theirs, ours in _SIZES.items()}
    return sizes | {
        "MLP": ffn.width,
        "S": cell.states,
        "rec": str(tuple(cell.layers or range(model.layers))) if cells else "()",
        "skip": cell.cell == "skip" and bool(cells),
        "single": cell.cell == "single",
        "gate": gates[cell.gate],
        "feedback": model.feedback,
        "dstack": model.window if model.feedback else 0,
    }
