"""Where a tokenizer is: a file, a folder of a model, or a name on Hugging Face's hub."""

import re
from contextlib import suppress
from pathlib import Path

from brt_dist.errors import DataError

_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model")  # as folders of models call it, the best first
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+$")


def tokenizer_file(place: Path) -> Path:
    """The file of a tokenizer.

    Args:
        place: the file, a folder that holds it, or OWNER/NAME on the hub.  What was downloaded before is found without
            a network.

    Raises:
        DataError: there is none.
    """
    if place.is_dir():
        for name in _FILES:
            if (place / name).is_file():
                return place / name
        raise DataError(f"{place}: no tokenizer in this folder ({', '.join(_FILES)})")
    if place.exists() or not _HUB_NAME.match(str(place)):
        return place
    return _from_hub(str(place))


def _from_hub(name: str) -> Path:
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RemoteEntryNotFoundError,
    )

    try:
        for file in _FILES:
            if isinstance(found := try_to_load_from_cache(name, file), str):
                return Path(found)
        for file in _FILES[:-1]:
            with suppress(RemoteEntryNotFoundError):
                return Path(hf_hub_download(name, file, etag_timeout=10))
        return Path(hf_hub_download(name, _FILES[-1], etag_timeout=10))
    except RemoteEntryNotFoundError:
        raise DataError(f"{name}: no tokenizer in this model of the hub ({', '.join(_FILES)})") from None
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        why = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise DataError(
            f"{name}: no such file, and no tokenizer of that name on Hugging Face's hub ({why}); nearest: the path "
            "of a tokenizer.json, or of a folder that holds one"
        ) from None
