"""Compare the model with what the reference implementation computed from the same weights.

A golden file NAME.npz holds weights, three consecutive segments, and for each the outputs, the memory afterwards and
(for the first two) the gradients; NAME.json beside it says which network it is.
"""

import json
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from brt_dist.config.schema import ModelConfig
from brt_dist.errors import CheckpointError, DataError
from brt_dist.export.reference import from_reference, to_reference
from brt_dist.export.reference_config import UnsupportedKind, from_settings
from brt_dist.model.model import BlockRecurrentModel, full_logits, loss_sum, token_losses
from brt_dist.model.parameters import load, logical_parameters
from tests.golden.differences import Differences, WrongShape, absolute, relative, worst

SEGMENTS = 3
NAMES = {"state": "recurrent_state", "keys": "xl_cache_keys", "values": "xl_cache_values"}
LEFTOVER = 7.0  # in all memory before the first segment; the starts of documents must hide it


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The "config" of the .json beside `path`, and all arrays of the .npz.

    Raises:
        DataError: one of the two cannot be read.
    """
    try:
        config = json.loads(path.with_suffix(".json").read_text())["config"]
        with np.load(path) as arrays:
            here = torch.get_default_device()
            return config, {name: torch.from_numpy(np.array(arrays[name])).to(here) for name in arrays.files}
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path}: not a golden file with its .json beside it ({error})") from None


def compare(path: Path) -> Differences:
    """Run the golden file `path` through the model.  Megatron's groups must exist.

    Raises:
        DataError: the file cannot be read, or lacks arrays.
        UnsupportedKind: the model does not have this kind.
    """
    golden, arrays = read(path)
    try:
        config = from_settings(golden)
        weights = {name.removeprefix("param/"): value for name, value in arrays.items() if name.startswith("param/")}
        model = BlockRecurrentModel(config)
        load(model, from_reference(weights, config))
        return _run(model, config, arrays)
    except UnsupportedKind:
        raise
    except (KeyError, WrongShape, CheckpointError) as error:
        raise DataError(f"{path}: incomplete or inconsistent ({error})") from None


def _run(model: BlockRecurrentModel, config: ModelConfig, arrays: Mapping[str, Tensor]) -> Differences:
    forward, state, gradient = [], [], []
    streams = arrays["seg0/input_tokens"].shape[0]
    memory = [
        {name: torch.full_like(field, LEFTOVER) for name, field in blank.items()}
        for blank in model.blank_memory(streams)
    ]
    for segment in range(SEGMENTS):
        expected = {name.split("/", 1)[1]: value for name, value in arrays.items() if name.startswith(f"seg{segment}/")}
        tokens, mask = expected["input_tokens"].long() % config.vocab_size, expected["loss_mask"].bool()
        target = expected["target_tokens"].long()
        starts = torch.zeros(streams, tokens.shape[1] // config.window, dtype=torch.bool)
        starts[:, 0] = expected["start_of_sequence"]

        logits, memory = model(tokens, memory, starts)
        mean_loss = loss_sum(logits, target, mask) / mask.sum()
        forward += [
            absolute(full_logits(logits, config.vocab_size), expected["logits"]),
            absolute(token_losses(logits, target) * mask, expected["token_losses"]),
            absolute(mean_loss, expected["mean_loss"]),
        ]
        for layer, carried in enumerate(memory):
            state += [absolute(ours, expected[f"{NAMES[name]}/layer{layer}"]) for name, ours in carried.items()]
        if any(name.startswith("grad/") for name in expected):
            gradient += _gradients(model, mean_loss, config, expected)
    return Differences(worst(forward) or 0.0, worst(state), worst(gradient))


def _gradients(
    model: BlockRecurrentModel, loss: Tensor, config: ModelConfig, expected: Mapping[str, Tensor]
) -> list[float]:
    """Relative difference of each gradient tensor of the reference."""
    parameters = list(logical_parameters(model))
    found = torch.autograd.grad(loss, [parameter.local for parameter in parameters], materialize_grads=True)
    ours = {parameter.name: parameter.whole([gradient]) for parameter, gradient in zip(parameters, found, strict=True)}
    return [relative(gradient, expected[f"grad/{name}"]) for name, gradient in to_reference(ours, config).items()]
