"""Opens the datasets that a config names."""

from collections.abc import Callable
from dataclasses import replace

from brt_dist.config.schema import CacheConfig, Config, DataConfig
from brt_dist.data.dataset import Dataset
from brt_dist.data.file_cache import CacheSettings, default_directory
from brt_dist.data.mixture import Mixture, open_weighted
from brt_dist.data.stream_schedule import StreamSchedule
from brt_dist.files import is_url


def cache_settings(cache: CacheConfig) -> CacheSettings:
    """The settings of this node's cache; call it on each node, because the default folder may differ."""
    directory = cache.directory or default_directory()
    return CacheSettings(directory, int(cache.budget_gb * 1e9), cache.retry_seconds, cache.fetch)


def open_training(
    data: DataConfig, report: Callable[[str], None] = lambda _: None, check: bool = True
) -> Dataset | Mixture:
    """Open the training dataset or mixture; `report` and `check` are as for :meth:`Dataset.open`."""
    settings = cache_settings(data.cache)
    if data.shuffle_shards and settings.fetch == "auto":
        settings = replace(settings, fetch="shards")  # all documents of a shard are read soon
    return open_weighted(data.training, settings, report, check, data.verify)


def open_validation(
    data: DataConfig, report: Callable[[str], None] = lambda _: None, check: bool = True
) -> Dataset | None:
    """Open the held-out dataset; None if the config does not name one."""
    if not data.validation:
        return None
    # it is read in order, shard after shard
    settings = replace(cache_settings(data.cache), fetch="shards")
    return Dataset.open(data.validation, settings, report, check, data.verify)


def training_schedule(config: Config, dataset: Dataset | Mixture, streams: int | None = None) -> StreamSchedule:
    """The stream schedule of a run; `streams` replaces data.streams for a part of the run that had another number."""
    return StreamSchedule(
        dataset.parts,
        weights=dataset.weights,
        streams=streams or config.data.streams,
        segment=config.data.segment,
        window=config.model.window,
        seed=config.run.seed,
        shards=dataset.shards,
        together=config.data.shuffle_shards,
    )


def remote_places(data: DataConfig) -> list[str]:
    """The URLs among the datasets of a config."""
    places = [place for place, _ in data.training] + [data.validation or ""]
    return [str(place) for place in places if is_url(place)]
