"""Opens the storage for a path or URL."""

from pathlib import Path

from brt_dist.checkpoint.object_storage import ObjectStorage
from brt_dist.checkpoint.storage import FolderStorage, Storage
from brt_dist.files import is_url


def open_storage(place: str | Path) -> Storage:
    """Storage for a path or an fsspec URL.

    Raises:
        PlatformError: the URL's protocol is unknown, or its package is not installed.
    """
    text = str(place)
    if is_url(text):
        return ObjectStorage(text)
    return FolderStorage(Path(text.removeprefix("file://")))
