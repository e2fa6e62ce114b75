"""Opens weights in any supported form.

They are verified before use, nothing in them is executed, and a tensor is read when it is requested.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from brt_dist.checkpoint.loader import Checkpoint
from brt_dist.checkpoint.places import answering, find_place
from brt_dist.config.loading import recorded
from brt_dist.config.schema import Config, ModelConfig
from brt_dist.errors import BrtError
from brt_dist.export.curve import curve_of
from brt_dist.export.gpt.folder import HUB, find_gpt, open_gpt
from brt_dist.export.weights import Weights
from brt_dist.files import is_url
from brt_dist.kinds import WEIGHT_FORMATS

_KIND = "weights/"


@contextmanager
def open_weights(
    source: str,
    step: int | None = None,
    model: ModelConfig | None = None,
    *,
    verify: bool = True,
    into: ModelConfig | None = None,
    seed: int = 0,
) -> Iterator[Weights]:
    """Open the weights at `source`.

    Args:
        source: a run directory, a checkpoint, a folder or URL of checkpoints, a file or folder in a weight format, or a
            plain Hugging Face GPT (a folder, or hf://OWNER/NAME).
        step: of the checkpoint; None: the newest.
        model: the model of an .npz file without a .json file.
        verify: compare the files with their digests, which reads all of them; not needed for metadata alone.
        into: the model that weights of another architecture are converted for; None: the one that fits them.
        seed: for parameters that such weights lack.

    Raises:
        CheckpointError: there are no weights, or they are damaged.
        PlatformError: the storage does not respond.
    """
    with _opened(source, step, model, verify, into, seed) as weights:
        yield weights


def _opened(
    source: str, step: int | None, model: ModelConfig | None, verify: bool, into: ModelConfig | None, seed: int
) -> AbstractContextManager[Weights]:
    if not is_url(source) or source.startswith(HUB):
        if (folder := find_gpt(source)) is not None:
            return open_gpt(folder, into, seed)
        for form in WEIGHT_FORMATS.values():
            if form.recognizes(Path(source)):
                return form.open(Path(source), model, verify=verify)
    return _open_checkpoint(source, step, verify)


@contextmanager
def _open_checkpoint(source: str, step: int | None, verify: bool) -> Iterator[Weights]:
    place = find_place(source)
    name = place.names()[-1] if step is None else place.of_step(step)
    with answering(place.storage), Checkpoint.open(place.storage, name) as checkpoint:
        manifest = checkpoint.manifest
        files = [entry for entry in manifest.files if entry.name.startswith(_KIND)]
        if verify:
            checkpoint.verify(files)
        config = recorded(manifest.config, f"{place.storage}/{name}")
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
            read_region=lambda tensor, region: checkpoint.part(_KIND + tensor, region),
            verify=lambda rank, ranks: checkpoint.verify(files[rank::ranks]),
            curve=lambda: curve_of(source, manifest.step),
        )


def _public(config: dict[str, Any]) -> dict[str, Any]:
    """A config without private settings: tracking may contain a password, launch names machines."""
    run = {key: value for key, value in config["run"].items() if key != "tracking"}
    return {key: value for key, value in config.items() if key != "launch"} | {"run": run}


def _tokenizer_of(config: Config, digest: str) -> bytes | None:
    """The tokenizer of the run's data, if the data is still there; datasets at URLs are not opened."""
    from brt_dist.data.mixture import open_weighted

    try:
        with open_weighted(config.data.training) as data:
            return data.tokenizer.read_bytes() if data.digest == digest else None
    except (BrtError, OSError):
        return None
