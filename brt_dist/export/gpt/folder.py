"""Opens a plain Hugging Face GPT, from a folder or the hub, as weights for one of our models."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from brt_dist.checkpoint.ranges import LocalFile
from brt_dist.checkpoint.tensor_file import TensorFileReader
from brt_dist.checkpoint.tensor_header import PlacedTensor, read_header
from brt_dist.config.schema import ModelConfig
from brt_dist.errors import CheckpointError, PlatformError
from brt_dist.export.gpt.rules import Rule, rules
from brt_dist.export.gpt.shape import FAMILIES, GptShape, shape_of
from brt_dist.export.gpt.table import origin
from brt_dist.export.weights import Weights, logical_tensors
from brt_dist.parallel.pieces import LogicalTensor, Region
from brt_dist.reading import read_json
from brt_dist.unreachable import unreachable

HUB = "hf://"
_CONFIG, _TOKENIZER = "config.json", "tokenizer.json"
_OUR_TYPE = "block_recurrent_transformer"  # of exports
_TENSORS = 9  # of a layer, at least
_LARGEST_CONFIG = 4 << 20  # bytes
_MOST_FILES = 10_000
_PREFIXES = ("", "model.", "transformer.")  # of the whole model in the names of its tensors


def find_gpt(source: str) -> Path | None:
    """The folder of a GPT that is known here; None: `source` is something else.

    Args:
        source: a folder, or hf://OWNER/NAME.

    Raises:
        CheckpointError: it is another kind of Hugging Face model.
        PlatformError: the hub does not have it, or does not answer.
    """
    folder = _from_hub(source.removeprefix(HUB)) if source.startswith(HUB) else Path(source)
    try:
        config = read_json(folder / _CONFIG, _LARGEST_CONFIG)
    except (OSError, ValueError):
        return None
    kind = config.get("model_type") if isinstance(config, dict) else None
    if not isinstance(kind, str) or kind == _OUR_TYPE:
        return None
    if kind not in FAMILIES:
        raise CheckpointError(
            f"{source}: a Hugging Face model of type {kind[:80]!r}, which is not supported; supported types: "
            f"{', '.join(FAMILIES)}"
        )
    return folder


def shape_in(folder: Path) -> GptShape:
    """The shape of the GPT in `folder`.  CheckpointError: its config.json does not say."""
    return shape_of(read_json(folder / _CONFIG, _LARGEST_CONFIG), str(folder / _CONFIG))


@contextmanager
def open_gpt(folder: Path, model: ModelConfig | None, seed: int) -> Iterator[Weights]:
    """The weights of `model`, made from those in `folder` where they map, and otherwise as in a new run.

    Args:
        folder: that :func:`find_gpt` found.
        model: the network to make; None: the one that fits, with one recurrent layer.
        seed: for the weights that are drawn.

    Raises:
        CheckpointError: the files are damaged, or the model has other sizes.
    """
    shape = shape_in(folder)
    model = model or ModelConfig.model_validate({**shape.section(), "vocab_size": shape.vocab_size})
    if misfits := list(shape.misfits(model)):
        raise CheckpointError(
            f"{folder}: the weights do not fit this model:\n"
            + "\n".join(f"  - {text}" for text in misfits)
            + f"\n`brt import {folder} --print-config` prints the model section that fits"
        )
    with ExitStack() as stack:
        files = {path: TensorFileReader(_open(path), str(path)) for path in _files(folder)}
        for reader in files.values():
            stack.callback(reader.close)
        found = {name: (path, placed) for path in files for name, placed in _header(path).items()}
        prefix = _check(found, shape, folder)
        made = dict(rules(shape, model))
        _check_shapes(found, made, prefix, folder)
        logical = logical_tensors(model)

        def theirs(name: str) -> Tensor:
            path, placed = found[prefix + name]
            tensor = LogicalTensor(f"weights/{prefix}{name}", placed.shape, torch.float32)
            return files[path].read(tensor, Region.whole(placed.shape)).view(placed.shape).float()

        def drawn(name: str) -> Tensor:
            box = tuple((0, size) for size in logical[name].shape)
            return logical[name].initial_values(seed, box, 0, logical[name].size).view(logical[name].shape)

        @lru_cache(maxsize=1)  # regions of one tensor are requested one after the other
        def read(name: str) -> Tensor:
            if name not in made:
                return drawn(name)
            rule = made[name]
            return rule.make([theirs(source) for source, _ in rule.sources], lambda: drawn(name)).contiguous()

        tokenizer = folder / _TOKENIZER
        yield Weights(
            str(folder),
            model,
            {name: tensor.shape for name, tensor in logical.items()},
            read,
            tokenizer=tokenizer.read_bytes() if tokenizer.is_file() else None,
            origin=origin(shape, made, list(logical), {name.removeprefix(prefix) for name in found}),
        )


def _files(folder: Path) -> list[Path]:
    """The files of weights.  CheckpointError: there are none that can be read."""
    found = sorted(folder.glob("*.safetensors"))[:_MOST_FILES]
    if found:
        return found
    others = "; pickled weights (.bin, .pt) may run code, so they are not read: save them with transformers' "
    others += "save_pretrained, which writes safetensors"
    raise CheckpointError(f"{folder}: no .safetensors{others if any(folder.glob('*.bin')) else ''}")


def _open(path: Path) -> LocalFile:
    try:
        return LocalFile(path)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from None


def _header(path: Path) -> Mapping[str, PlacedTensor]:
    file = _open(path)
    try:
        return read_header(file, str(path))
    finally:
        file.close()


def _check(found: Mapping[str, Any], shape: GptShape, folder: Path) -> str:
    """The prefix of all names.  CheckpointError: the files hold no such model."""
    embedding = "wte.weight" if shape.family == "gpt2" else "embed_tokens.weight"
    prefix = next((prefix for prefix in _PREFIXES if prefix + embedding in found), None)
    if prefix is None or _TENSORS * shape.layers > len(found):
        what = f"no {embedding}" if prefix is None else f"fewer tensors than {shape.layers} layers have"
        raise CheckpointError(f"{folder}: its .safetensors hold {what}")
    return prefix


def _check_shapes(
    found: Mapping[str, tuple[Path, PlacedTensor]], made: Mapping[str, Rule], prefix: str, folder: Path
) -> None:
    for rule in made.values():
        for name, expected in rule.sources:
            shape = found[prefix + name][1].shape if prefix + name in found else "missing"
            if shape != expected:
                raise CheckpointError(f"{folder}: tensor {prefix}{name} is {shape}, but {_CONFIG} says {expected}")


def _from_hub(name: str) -> Path:
    """The folder of a model of the hub, downloaded or from its cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    wanted = [_CONFIG, _TOKENIZER, "*.safetensors"]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted, etag_timeout=10))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        why = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        problem = unreachable(f"{HUB}{name}", error) or f"Hugging Face's hub does not provide it ({why})"
        raise PlatformError(
            f"{HUB}{name}: not downloaded before, and {problem}; nearest: a folder with its config.json and "
            ".safetensors"
        ) from None
