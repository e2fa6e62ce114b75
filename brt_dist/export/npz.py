"""Weights under the reference's names, in numpy's .npz: `param/NAME` for each, and a .json beside it.

The .json has the reference's settings as "config", and ours as "model" where we wrote it.
"""

import json
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.lib import format as npy
from pydantic import ValidationError
from torch import Tensor

from brt_dist.config.schema import ModelConfig
from brt_dist.errors import CheckpointError, PlatformError
from brt_dist.export.reference import from_reference, to_reference
from brt_dist.export.reference_config import from_settings, to_settings
from brt_dist.export.weights import Weights, logical_shapes
from brt_dist.files import atomic_file, write_atomic
from brt_dist.reading import read_json

_PREFIX = "param/"
# what zipfile and numpy raise for a damaged or encrypted archive; the last two: an unknown compression
_ERRORS = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError)


def open_npz(path: Path, model: ModelConfig | None) -> Weights:
    """Read all weights in an .npz file.

    Args:
        path: of the file.
        model: its model; None: as described by the .json file next to it.

    Raises:
        CheckpointError: the file cannot be read, or its weights do not fit the model.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    settings = _settings(path)
    try:
        model = model or _model(settings)
    except (KeyError, TypeError, ValueError, AttributeError, SyntaxError) as error:
        why = f"it has no {error}" if isinstance(error, KeyError) else error
        raise CheckpointError(f"{path.with_suffix('.json')}: does not describe a model: {why}") from None
    shapes = logical_shapes(model)
    blank = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    expected = {name: tuple(tensor.shape) for name, tensor in to_reference(blank, model).items()}
    ours = from_reference(_read(path, expected), model)
    facts = settings.get("facts", {})
    return Weights(str(path), model, shapes, ours.__getitem__, facts if isinstance(facts, dict) else {})


def write_npz(weights: Weights, out: Path) -> list[str]:
    """Write `out`/model.npz and its .json (or `out`, if it ends so); returns the names of both.

    Raises:
        UnsupportedKind: the reference has no such network.
        PlatformError: such a file exists, or it cannot be written.
    """
    path = out if out.suffix == ".npz" else out / "model.npz"
    if path.exists():
        raise PlatformError(f"{path} already exists; nearest: --out {out.with_name(out.stem + '_2' + out.suffix)}")
    settings = to_settings(weights.model)
    tensors = to_reference({name: weights.read(name) for name in weights.shapes}, weights.model)
    about = {"config": settings, "model": weights.model.model_dump(mode="json"), "facts": weights.facts}
    try:
        with atomic_file(path) as file:
            np.savez(file, **{_PREFIX + name: tensor.numpy() for name, tensor in tensors.items()})  # type: ignore[arg-type]
        write_atomic(path.with_suffix(".json"), json.dumps(about, indent=1) + "\n")
    except OSError as error:
        raise PlatformError(f"cannot write {path}: {error.strerror or error}") from error
    return [path.name, path.with_suffix(".json").name]


def _settings(path: Path) -> dict[str, Any]:
    about = path.with_suffix(".json")
    try:
        found = read_json(about) if about.is_file() else {}
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {about} ({error})") from None
    return found if isinstance(found, dict) else {}


def _model(settings: dict[str, Any]) -> ModelConfig:
    if "model" in settings:
        try:
            return ModelConfig.model_validate_json(json.dumps(settings["model"]), strict=True)
        except ValidationError as error:
            raise ValueError(f"model: {error.errors()[0]['msg']}") from None
    if "config" not in settings:
        raise ValueError('an .npz file needs a .json file beside it, with a section "config" or "model"')
    return from_settings(settings["config"])


def _read(path: Path, expected: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """All expected arrays; their shapes are checked before any of them is read."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = {name.removesuffix(".npy"): name for name in archive.namelist()}
            prefix = _PREFIX if any(name.startswith(_PREFIX) for name in members) else ""
            tensors = {}
            for name, shape in expected.items():
                if prefix + name not in members:
                    raise CheckpointError(f"{path} has no {prefix}{name}, which the model needs")
                with archive.open(members[prefix + name]) as file:
                    _check_header(file, shape, f"{path}: {prefix}{name}")
                with archive.open(members[prefix + name]) as file:
                    tensors[name] = torch.from_numpy(npy.read_array(file, allow_pickle=False))
            unknown = {name for name in members if prefix and name.startswith(prefix)} - {prefix + n for n in expected}
    except _ERRORS as error:
        raise CheckpointError(f"{path}: not a readable .npz file ({type(error).__name__}: {error})") from None
    if unknown:
        raise CheckpointError(f"{path} has {min(unknown)}, which the model does not have")
    return tensors


def _check_header(file: IO[bytes], shape: tuple[int, ...], where: str) -> None:
    version = npy.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise CheckpointError(f"{where} is of version {version} of numpy's format")
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    found, _, dtype = read(file)
    if tuple(found) != shape or dtype != np.dtype("float32"):
        raise CheckpointError(f"{where} is {dtype} {tuple(found)}, but the model needs float32 {shape}")
