"""Datasets that comparisons train on and measure with."""

from collections.abc import Iterable
from pathlib import Path


def built(sources: Iterable[Path], tokenizer: str, folder: Path) -> Path:
    """The dataset in `folder`, built if there is none.

    A dataset that is there is taken as it is: a copy of `folder` stays good although its files, and those that it was
    built from, have other times.
    """
    from brt_dist.data.format import DATASET_FILE
    from pipelines.build import BuildSettings, build

    if not (folder / DATASET_FILE).exists():  # which a build writes last
        settings = BuildSettings(tuple(map(str, sources)), tokenizer, shard_size=1 << 20)
        build(settings, folder, workers=0, overwrite=True)
    return folder
