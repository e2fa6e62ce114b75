"""Opens the datasets that a config names."""

from collections.abc import Callable

from brt_dist.config.schema import CacheConfig, DataConfig
from brt_dist.data.dataset import Dataset
from brt_dist.data.file_cache import CacheSettings, default_directory
from brt_dist.data.mixture import Mixture, open_weighted
from brt_dist.files import is_url


def cache_settings(cache: CacheConfig) -> CacheSettings:
    """The settings of this node's cache; call it on each node, because the default folder may differ."""
    return CacheSettings(cache.directory or default_directory(), int(cache.budget_gb * 1e9), cache.retry_seconds)


def open_training(data: DataConfig, report: Callable[[str], None] = lambda _: None) -> Dataset | Mixture:
    """Open the training dataset or mixture; `report` is as for :meth:`Dataset.open`."""
    return open_weighted(data.training, cache_settings(data.cache), report)


def open_validation(data: DataConfig, report: Callable[[str], None] = lambda _: None) -> Dataset | None:
    """Open the held-out dataset; None if the config does not name one."""
    return Dataset.open(data.validation, cache_settings(data.cache), report) if data.validation else None


def remote_places(data: DataConfig) -> list[str]:
    """The URLs among the datasets of a config."""
    places = [place for place, _ in data.training] + [data.validation or ""]
    return [str(place) for place in places if is_url(place)]
