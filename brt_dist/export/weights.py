"""Weights to read from: of a run, of a checkpoint, of a folder that was exported, or of the reference.

Whatever it is, it is verified before anything is given out, nothing in it is run, and a tensor is read when it is
asked for.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from brt_dist.checkpoint.loader import Checkpoint
from brt_dist.checkpoint.places import answering, find_place
from brt_dist.checkpoint.storage import is_url
from brt_dist.config.schema import Config, ModelConfig
from brt_dist.errors import BrtError, CheckpointError

_KIND = "weights/"


@dataclass(frozen=True)
class Weights:
    """All weights of a model, float32, by logical name.

    Attributes:
        where: what they were read from, for messages.
        model: the network; vocab_size is set.
        shapes: of each logical tensor.
        read: gives one of them, whole.
        facts: where they come from: step, tokens, evaluations, dataset, versions; as far as it is known.
        config: of the run that trained them, if one did.
        tokenizer: its file, if it is known.
    """

    where: str
    model: ModelConfig
    shapes: dict[str, tuple[int, ...]]
    read: Callable[[str], Tensor]
    facts: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] | None = None
    tokenizer: bytes | None = None


@contextmanager
def open_weights(
    source: str, step: int | None = None, model: ModelConfig | None = None, *, verify: bool = True
) -> Iterator[Weights]:
    """Open the weights of `source`.

    Args:
        source: a run directory, a checkpoint or a place of some (folder or URL), an exported folder, or an .npz file
            with the reference's names.
        step: of which checkpoint; none: of the newest.
        model: the network of an .npz file that has no .json beside it.
        verify: compare the files with their digests, which reads them whole.  Not needed to look at what they are.

    Raises:
        CheckpointError: there are none, or they are damaged.
        PlatformError: the storage does not answer.
    """
    from brt_dist.export.folder import CONFIG, open_folder
    from brt_dist.export.npz import open_npz

    path = Path(source)
    if not is_url(source) and path.suffix == ".npz":
        yield open_npz(path, model)
    elif not is_url(source) and (path / CONFIG).is_file():
        with open_folder(path, verify=verify) as weights:
            yield weights
    else:
        with _open_checkpoint(source, step, verify) as weights:
            yield weights


@contextmanager
def _open_checkpoint(source: str, step: int | None, verify: bool) -> Iterator[Weights]:
    place = find_place(source)
    name = place.names()[-1] if step is None else place.of_step(step)
    with answering(place.storage), Checkpoint.open(place.storage, name) as checkpoint:
        manifest = checkpoint.manifest
        if verify:
            checkpoint.verify(entry for entry in manifest.files if entry.name.startswith(_KIND))
        try:
            config = Config.model_validate(manifest.config)
        except ValueError as error:
            raise CheckpointError(f"{place.storage}/{name}: its config is of another version ({error})") from None
        yield Weights(
            where=f"{place.storage}/{name}",
            model=config.model,
            shapes={
                tensor.removeprefix(_KIND): entry.shape
                for tensor, entry in manifest.tensors.items()
                if tensor.startswith(_KIND)
            },
            read=lambda tensor: checkpoint.whole(_KIND + tensor),
            facts={
                "step": manifest.step,
                "tokens": manifest.tokens,
                "evaluations": manifest.evaluations,
                "dataset": manifest.dataset,
                "versions": manifest.versions,
            },
            config=_public(manifest.config),
            tokenizer=_tokenizer_of(config, manifest.dataset),
        )


def logical_shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """What the network needs: shapes by logical name.  Allocates nothing, however large they are."""
    from megatron.core import parallel_state

    from brt_dist.model.model import BlockRecurrentModel
    from brt_dist.model.parameters import logical_parameters
    from brt_dist.parallel.layout import single_process

    if parallel_state.model_parallel_is_initialized():
        with torch.device("meta"):
            return {parameter.name: parameter.shape for parameter in logical_parameters(BlockRecurrentModel(model))}
    with single_process():
        return logical_shapes(model)


def check_shapes(found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]], where: str) -> None:
    """CheckpointError: other tensors than expected; names the first that is missing, unknown or of another shape."""
    for name in sorted(expected.keys() | found.keys()):
        if found.get(name) != expected.get(name):
            now, needed = found.get(name, "missing"), expected.get(name, "none")
            raise CheckpointError(f"{where}: tensor {name} is {now}, the network has {needed}")


def _public(config: dict[str, Any]) -> dict[str, Any]:
    """A config without what is nobody's business: tracking may hold a password, launch names machines."""
    run = {key: value for key, value in config["run"].items() if key != "tracking"}
    return {key: value for key, value in config.items() if key != "launch"} | {"run": run}


def _tokenizer_of(config: Config, digest: str) -> bytes | None:
    """That of the run's data, if that is still there; data at URLs is not asked."""
    from pipelines.mixture import open_weighted

    try:
        with open_weighted(config.data.training) as data:
            return data.tokenizer.read_bytes() if data.digest == digest else None
    except (BrtError, OSError):
        return None
