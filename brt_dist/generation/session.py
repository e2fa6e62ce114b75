"""The memory of a document or a conversation as a file: a few megabytes, whatever was read.

A safetensors file with the memory of each layer after the last complete block, and the tokens of the open block.
"""

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from brt_dist.errors import CheckpointError, PlatformError
from brt_dist.files import write_atomic
from brt_dist.generation.decoder import Decoder
from brt_dist.reading import parse_json, read_bytes

_KIND, _VERSION = "brt_dist memory", 1
_HEADER_LIMIT = 1 << 20
_PROBED = 64  # values of each tensor that the fingerprint uses, from both ends


@dataclass(frozen=True)
class Owner:
    """Whose memory it is.

    Attributes:
        model: fingerprint of the weights, see :func:`fingerprint`.
        tokenizer: sha256 of the tokenizer's file; None if it is not known.
        name: of the model, for messages.
    """

    model: str
    tokenizer: str | None
    name: str


def fingerprint(network: nn.Module) -> str:
    """Tells trained models apart: a hash of the names, shapes and some values of all weights, in float32.

    A checkpoint and its export have the same fingerprint.
    """
    found = sha256()
    for name, value in sorted(network.named_parameters()):
        flat = value.detach().flatten()
        probe = torch.cat([flat[:_PROBED], flat[-_PROBED:]]).float().cpu()
        found.update(f"{name} {tuple(value.shape)}".encode())
        found.update(probe.numpy().tobytes())
    return found.hexdigest()


def save_memory(path: Path, decoder: Decoder, stream: int, unread: Sequence[int], owner: Owner) -> None:
    """Write the memory of a stream; the file appears whole or not at all.

    Args:
        path: of the file.
        decoder: that has read the text.
        stream: of the decoder.
        unread: tokens of the text that it has not read yet, such as the last one generated.
        owner: the model.

    Raises:
        PlatformError: the file cannot be written.
    """
    from safetensors.torch import save

    memory, tokens = decoder.state(stream)
    about = {
        "kind": _KIND,
        "version": str(_VERSION),
        "model": owner.model,
        "tokenizer": owner.tokenizer or "",
        "name": owner.name,
        "read": str(decoder.read[stream]),
        "tokens": json.dumps(tokens),
        "unread": json.dumps(list(unread)),
    }
    try:
        write_atomic(path, save({name: value.contiguous() for name, value in memory.items()}, about))
    except OSError as error:
        raise PlatformError(f"cannot write {path}: {error.strerror or error}") from None


def load_memory(path: Path, decoder: Decoder, stream: int, owner: Owner) -> list[int]:
    """Give a stream the memory in a file.

    Args:
        path: of the file.
        decoder: whose stream is overwritten.
        stream: of the decoder.
        owner: the model that will use it.

    Returns:
        Tokens that come before the next prompt, and that were not read yet.

    Raises:
        CheckpointError: not such a file, damaged, or of another model or tokenizer.
    """
    about, memory = _read(path)
    try:
        read, tokens, unread = int(about["read"]), parse_json(about["tokens"]), parse_json(about["unread"])
        known = all(isinstance(token, int) for token in [*tokens, *unread])
    except (KeyError, ValueError, TypeError, AttributeError):
        known = False
    if not known or about.get("kind") != _KIND:
        raise CheckpointError(f"{path} is not a memory saved by `brt generate --save-memory`")
    if about.get("version") != str(_VERSION):
        raise CheckpointError(f"{path} has version {about.get('version')}; this version of brt reads {_VERSION}")
    if about.get("model") != owner.model:
        raise CheckpointError(f"{path} is the memory of another model, {about.get('name')}; this one is {owner.name}")
    if about.get("tokenizer") and owner.tokenizer and about["tokenizer"] != owner.tokenizer:
        raise CheckpointError(f"{path} was made with a different tokenizer than that of {owner.name}")
    decoder.restore(stream, memory, tokens, read)
    return list(unread)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        data = read_bytes(path)
        (size,) = struct.unpack("<Q", data[:8])
        if size > _HEADER_LIMIT:
            raise ValueError("header too large")
        about = parse_json(data[8 : 8 + size])["__metadata__"]
        return about, load(data)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from None
    except (ValueError, KeyError, TypeError, struct.error, SafetensorError) as error:
        raise CheckpointError(f"{path} is not a memory saved by `brt generate --save-memory` ({error})") from None
