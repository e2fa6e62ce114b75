"""Which storage a place names."""

from pathlib import Path

from brt_dist.checkpoint.object_storage import ObjectStorage
from brt_dist.checkpoint.storage import FolderStorage, Storage
from brt_dist.files import is_url


def open_storage(place: str | Path) -> Storage:
    """Storage for a path or an fsspec URL.

    Raises:
        PlatformError: the package for the URL's protocol is not installed, or there is none.
    """
    text = str(place)
    if is_url(text):
        return ObjectStorage(text)
    return FolderStorage(Path(text.removeprefix("file://")))
