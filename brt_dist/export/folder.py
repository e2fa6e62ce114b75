"""A model as a folder: safetensors under logical names, a config.json as Hugging Face users expect it, the tokenizer.

OUT/config.json                    the network, where it comes from, sizes and digests of the files
OUT/model.safetensors              the weights, float32; above some size, several files with an index
OUT/tokenizer.json                 the dataset's

and the texts that the format adds (formats/safetensors.py, formats/hf.py).
"""

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from brt_dist.checkpoint.manifest import FileEntry, TensorEntry, contradiction
from brt_dist.checkpoint.ranges import LocalFile
from brt_dist.checkpoint.tensor_file import TensorFileReader, TensorFileWriter
from brt_dist.checkpoint.tensor_header import read_header
from brt_dist.config.older import MODEL_KEYS
from brt_dist.config.schema import ModelConfig
from brt_dist.errors import CheckpointError, PlatformError
from brt_dist.export.hf_tokenizer import OURS
from brt_dist.export.weights import Weights, check_shapes, logical_shapes
from brt_dist.files import sync_directory, write_atomic
from brt_dist.parallel.pieces import LogicalTensor, Region
from brt_dist.reading import read_json

CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
_FORMAT = 1
_CONFIG_LIMIT = 64 << 20  # bytes
_FILE_NAME = re.compile(r"model(-\d+-of-\d+)?\.safetensors", re.ASCII)
_SECTION = "brt_dist"


def write_folder(
    weights: Weights, out: Path, texts: Mapping[str, str], shard_bytes: int, facts: Mapping[str, Any]
) -> list[str]:
    """Write `weights` as the folder `out`, atomically.

    Args:
        weights: what to write.
        out: where; must not exist, or be an empty folder.
        texts: further files, by name.
        shard_bytes: the largest size of a file of weights.
        facts: what config.json tells other programs.

    Returns:
        The names of the files.

    Raises:
        PlatformError: `out` holds something already, or cannot be written.
        CheckpointError: the weights are not those of their network.
    """
    check_shapes(weights.shapes, logical_shapes(weights.model), weights.where)
    draft = out.with_name(f".{out.name}.draft-{os.getpid()}")
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise PlatformError(f"{out} is not empty; nearest: --out {out.with_name(out.name + '_2')}")
        draft.mkdir(parents=True)
        try:
            _write(weights, draft, texts, shard_bytes, facts)
            sync_directory(draft)
            if out.exists():
                out.rmdir()
            draft.rename(out)
            sync_directory(out.parent)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    except OSError as error:
        raise PlatformError(f"cannot write {out}: {error.strerror or error}") from error
    return sorted(path.name for path in out.iterdir())


@contextmanager
def open_folder(folder: Path, *, verify: bool = True) -> Iterator[Weights]:
    """The weights in a folder that :func:`write_folder` made, verified.

    Args:
        folder: where they are.
        verify: read the files and compare them with their digests; otherwise only check that they exist.

    Raises:
        CheckpointError: damaged, or made by something else.
    """
    about, model = _read_config(folder)
    try:
        files = TypeAdapter(tuple[FileEntry, ...]).validate_json(json.dumps(about["files"]))
        tensors = TypeAdapter(dict[str, TensorEntry]).validate_json(json.dumps(about["tensors"]))
    except (ValidationError, KeyError) as error:
        raise CheckpointError(f"{folder / CONFIG}: section {_SECTION} is not a model of brt_dist ({error})") from None
    problem = contradiction(files, tensors, _FILE_NAME)
    if problem:
        raise CheckpointError(f"{folder / CONFIG} contradicts itself: {problem}")
    shapes = {name: entry.shape for name, entry in tensors.items()}
    check_shapes(shapes, logical_shapes(model), str(folder))
    for entry in files:
        _check_file(folder / entry.name, entry, {n: t for n, t in tensors.items() if t.file == entry.name})
    if verify:
        _verify(folder, files)
    readers = {entry.name: TensorFileReader(_open(folder / entry.name), str(folder / entry.name)) for entry in files}

    def read_region(name: str, region: Region) -> Tensor:
        tensor = LogicalTensor(f"weights/{name}", shapes[name], torch.float32)
        return readers[tensors[name].file].read(tensor, region)

    def read(name: str) -> Tensor:
        return read_region(name, Region.whole(shapes[name])).view(shapes[name])

    tokenizer = next((path for path in (folder / OURS, folder / TOKENIZER) if path.is_file()), folder / TOKENIZER)
    facts, config = about.get("facts", {}), about.get("config")
    try:
        yield Weights(
            str(folder),
            model,
            shapes,
            read,
            facts,
            config,
            tokenizer.read_bytes() if tokenizer.is_file() else None,
            read_region,
            lambda rank, ranks: _verify(folder, files[rank::ranks]),
        )
    finally:
        for reader in readers.values():
            reader.close()


def _write(weights: Weights, draft: Path, texts: Mapping[str, str], shard_bytes: int, facts: Mapping[str, Any]) -> None:
    files, tensors = _write_tensors(weights, draft, shard_bytes)
    about: dict[str, Any] = {
        "format": _FORMAT,
        "facts": weights.facts,
        "config": weights.config,
        "tokenizer": None if weights.tokenizer is None else sha256(weights.tokenizer).hexdigest(),
        "files": [asdict(entry) for entry in files],
        "tensors": {name: asdict(entry) for name, entry in tensors.items()},
    }
    usual: dict[str, Any] = {
        "model_type": "block_recurrent_transformer",
        "architectures": ["BlockRecurrentModel"],
        "dtype": "float32",
    }
    config = usual | dict(facts) | weights.model.model_dump(mode="json") | {_SECTION: about}
    write_atomic(draft / CONFIG, json.dumps(config, indent=1) + "\n")
    if len(files) > 1:
        index = {
            "metadata": {"total_size": sum(entry.bytes for entry in tensors.values())},
            "weight_map": {name: entry.file for name, entry in tensors.items()},
        }
        write_atomic(draft / "model.safetensors.index.json", json.dumps(index, indent=1) + "\n")
    if weights.tokenizer is not None and OURS not in texts:
        write_atomic(draft / TOKENIZER, weights.tokenizer)
    for name, text in texts.items():
        write_atomic(draft / name, text)


def _write_tensors(weights: Weights, draft: Path, shard_bytes: int) -> tuple[list[FileEntry], dict[str, TensorEntry]]:
    logical = [LogicalTensor(f"weights/{name}", shape, torch.float32) for name, shape in sorted(weights.shapes.items())]
    shards = _shards(logical, shard_bytes)
    files: list[FileEntry] = []
    tensors: dict[str, TensorEntry] = {}
    for number, shard in enumerate(shards, 1):
        name = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        with open(draft / name, "wb") as file:
            writer = TensorFileWriter(file, shard, {"format": "pt"})
            for tensor in shard:
                writer.write(weights.read(tensor.name.removeprefix("weights/")))
            file.flush()
            os.fsync(file.fileno())
        files.append(FileEntry(name, writer.bytes, writer.sha256))
        tensors |= {t.name.removeprefix("weights/"): TensorEntry(name, "F32", t.shape) for t in shard}
    return files, tensors


def _shards(tensors: Sequence[LogicalTensor], limit: int) -> list[list[LogicalTensor]]:
    """Consecutive tensors of at most `limit` bytes, or a single larger one."""
    shards: list[list[LogicalTensor]] = []
    room = -1
    for tensor in tensors:
        if tensor.bytes > room:
            shards.append([])
            room = limit
        shards[-1].append(tensor)
        room -= tensor.bytes
    return shards


def _read_config(folder: Path) -> tuple[dict[str, Any], ModelConfig]:
    path = folder / CONFIG
    try:
        values = read_json(path, _CONFIG_LIMIT)
        about = values[_SECTION]
        if about["format"] != _FORMAT:
            raise CheckpointError(f"{path}: unsupported format {about['format']}; this version reads {_FORMAT}")
        known = ModelConfig.model_fields.keys() | MODEL_KEYS.keys()
        model = {key: value for key, value in values.items() if key in known}
        return about, ModelConfig.model_validate_json(json.dumps(model), strict=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: not the config of a model that brt_dist exported ({error!r:.200})") from None


def _check_file(path: Path, entry: FileEntry, tensors: dict[str, TensorEntry]) -> None:
    """Compare a file with its entry in config.json, without reading its values."""
    if not path.is_file():
        raise CheckpointError(f"{path} is missing")
    if path.stat().st_size != entry.bytes:
        raise CheckpointError(f"{path} has {path.stat().st_size} bytes, but {CONFIG} says {entry.bytes}")
    with closing(_open(path)) as file:
        found = {name: (placed.dtype, placed.shape) for name, placed in read_header(file, str(path)).items()}
    if found != {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}:
        raise CheckpointError(f"{path} does not contain the tensors that {CONFIG} lists")


def _verify(folder: Path, files: Sequence[FileEntry]) -> None:
    for entry in files:
        with closing(_open(folder / entry.name)) as file:
            if file.sha256() != entry.sha256:
                raise CheckpointError(f"{folder / entry.name} was altered: its sha256 does not match {CONFIG}")


def _open(path: Path) -> LocalFile:
    try:
        return LocalFile(path)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from None
