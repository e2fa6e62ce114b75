"""Where a tokenizer is: a file, a folder of a model, or a name on Hugging Face's hub."""

import re
from contextlib import suppress
from pathlib import Path

from brt_dist.errors import DataError, PlatformError
from brt_dist.unreachable import unreachable

_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model")  # names of the file in model folders, the best first
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+$")
_HUB, _URL = re.compile("^hf:/+"), re.compile(r"(\w+:)/+(.*)")  # a Path keeps only one slash
_NEAREST = "nearest: the path of a tokenizer.json, or of a folder that holds one"
_SECONDS = 10  # how long to wait for the hub


def tokenizer_file(place: Path) -> Path:
    """The file of a tokenizer.

    Args:
        place: the file, a folder that holds it, or OWNER/NAME on the hub.  What was downloaded before is found without
            a network.

    Raises:
        DataError: there is none.
        PlatformError: the hub cannot be reached.
    """
    if place.is_dir():
        for name in _FILES:
            if (place / name).is_file():
                return place / name
        raise DataError(f"{place}: no tokenizer in this folder ({', '.join(_FILES)})")
    name = _HUB.sub("", str(place))
    if not place.exists() and _HUB_NAME.match(name):
        return _from_hub(name)
    if not place.exists() and (url := _URL.match(name)):
        raise DataError(f"{url[1]}//{url[2]}: tokenizers cannot be read from this kind of URL; {_NEAREST}")
    return place


def _from_hub(name: str) -> Path:
    """Download a tokenizer, or find it where it was downloaded before.

    Raises:
        DataError: the hub has no such model, or the model has no tokenizer.
        PlatformError: the hub cannot be reached.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import RemoteEntryNotFoundError

    try:
        for file in _FILES:
            if isinstance(found := try_to_load_from_cache(name, file), str):
                return Path(found)
        for file in _FILES:
            with suppress(RemoteEntryNotFoundError):
                get_hf_file_metadata(hf_hub_url(name, file), timeout=_SECONDS)  # fails at once; a download retries
                return Path(hf_hub_download(name, file, etag_timeout=_SECONDS))
    except Exception as error:  # of the hub's library or of the one below it
        if (problem := unreachable(name, error)) is not None:
            raise PlatformError(f"{name}: no such file, and {problem}; {_NEAREST}") from None
        why = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise DataError(
            f"{name}: no such file, and no tokenizer of that name on Hugging Face's hub ({why}); {_NEAREST}"
        ) from None
    raise DataError(f"{name}: this model on the hub has no tokenizer ({', '.join(_FILES)})")
