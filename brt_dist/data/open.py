"""The datasets that a config names, opened."""

from collections.abc import Callable

from brt_dist.config.schema import CacheConfig, DataConfig
from brt_dist.data.dataset import Dataset
from brt_dist.data.file_cache import CacheSettings, default_directory
from brt_dist.data.mixture import Mixture, open_weighted
from brt_dist.files import is_url


def cache_settings(cache: CacheConfig) -> CacheSettings:
    """The node's cache as the config says; on each node, as the default depends on it."""
    return CacheSettings(cache.directory or default_directory(), int(cache.budget_gb * 1e9), cache.retry_seconds)


def open_training(data: DataConfig, report: Callable[[str], None] = lambda _: None) -> Dataset | Mixture:
    """The training dataset or mixture.  report: told what went wrong with a remote one and was made good."""
    return open_weighted(data.training, cache_settings(data.cache), report)


def open_validation(data: DataConfig, report: Callable[[str], None] = lambda _: None) -> Dataset | None:
    """The held-out dataset, where the config names one."""
    return Dataset.open(data.validation, cache_settings(data.cache), report) if data.validation else None


def remote_places(data: DataConfig) -> list[str]:
    """The URLs among the places of datasets."""
    places = [place for place, _ in data.training] + [data.validation or ""]
    return [str(place) for place in places if is_url(place)]
