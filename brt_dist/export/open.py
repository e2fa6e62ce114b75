"""Weights of whatever kind a place holds: opened by what is there.

Whatever it is, it is verified before anything is given out, nothing in it is run, and a tensor is read when it is
asked for.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from brt_dist.checkpoint.loader import Checkpoint
from brt_dist.checkpoint.places import answering, find_place
from brt_dist.config.loading import recorded
from brt_dist.config.schema import Config, ModelConfig
from brt_dist.errors import BrtError, CheckpointError
from brt_dist.export.weights import Weights
from brt_dist.files import is_url
from brt_dist.kinds import WEIGHT_FORMATS

_KIND = "weights/"


@contextmanager
def open_weights(
    source: str, step: int | None = None, model: ModelConfig | None = None, *, verify: bool = True
) -> Iterator[Weights]:
    """Open the weights of `source`.

    Args:
        source: a run directory, a checkpoint or a place of some (folder or URL), or a file or folder in one of the
            formats of weights.
        step: of which checkpoint; none: of the newest.
        model: the network of an .npz file that has no .json beside it.
        verify: compare the files with their digests, which reads them whole.  Not needed to look at what they are.

    Raises:
        CheckpointError: there are none, or they are damaged.
        PlatformError: the storage does not answer.
    """
    found = None if is_url(source) else next((f for f in WEIGHT_FORMATS.values() if f.recognizes(Path(source))), None)
    opened = _open_checkpoint(source, step, verify) if found is None else found.open(Path(source), model, verify=verify)
    with opened as weights:
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
            config = recorded(manifest.config)
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


def _public(config: dict[str, Any]) -> dict[str, Any]:
    """A config without what is nobody's business: tracking may hold a password, launch names machines."""
    run = {key: value for key, value in config["run"].items() if key != "tracking"}
    return {key: value for key, value in config.items() if key != "launch"} | {"run": run}


def _tokenizer_of(config: Config, digest: str) -> bytes | None:
    """That of the run's data, if that is still there; data at URLs is not asked."""
    from brt_dist.data.mixture import open_weighted

    try:
        with open_weighted(config.data.training) as data:
            return data.tokenizer.read_bytes() if data.digest == digest else None
    except (BrtError, OSError):
        return None
