"""Compare ours with the numbers in a golden file of any kind.

A file NAME.npz is described either by NAME.json beside it, which holds the config of a Block-Recurrent Transformer
(`block_recurrent.py`), or by the entry NAME of an index.json beside it.  The kind of the latter is the module of
`tests/golden/kinds/` whose name begins NAME, or else the one whose arrays it has (a few among many prove nothing).
A module has

* `ARRAYS`: names of the arrays that every file of the kind has;
* `check(arrays, entry) -> Differences`: ours against the file's, for any shapes, whatever dtype the arrays have.

A new kind is one new file in that folder.
"""

import json
import pkgutil
import zipfile
import zlib
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from brt_dist.errors import DataError
from brt_dist.export.reference_config import UnsupportedKind
from tests.golden import block_recurrent, kinds
from tests.golden.differences import Differences, UnknownKind, WrongShape

TELLING = 4  # this many array names identify a kind


def compare(path: Path) -> Differences:
    """Run the golden file `path`.  Megatron's groups must exist.

    Raises:
        DataError: the file cannot be read, lacks arrays, or has arrays of the wrong shape.
        UnknownKind: nothing here computes what the file holds.
    """
    entry = described(path)
    if entry is None:
        try:
            return block_recurrent.compare(path)
        except UnsupportedKind as kind:
            raise UnknownKind(str(kind)) from None
    arrays = read(path)
    kind = kind_of(path.stem, arrays)
    missing = sorted(set(kind.ARRAYS) - set(arrays))
    if missing:
        raise DataError(f"{path}: no array {', '.join(missing)}")
    try:
        found: Differences = kind.check(arrays, entry)
    except (WrongShape, KeyError, RuntimeError, ValueError) as error:  # torch raises the latter two for shapes
        raise DataError(f"{path}: inconsistent ({error})") from None
    return found


def described(path: Path) -> dict[str, Any] | None:
    """The entry of `path` in the index.json beside it; None if NAME.json describes the file.

    Raises:
        DataError: the index cannot be read, or the file is described nowhere.
        UnknownKind: it is in neither of the two.
    """
    index = path.with_name("index.json")
    if path.with_suffix(".json").exists() or not index.exists():
        return None
    try:
        entry = json.loads(index.read_text()).get(path.stem)
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(f"{index}: not an index of golden files ({error})") from None
    if isinstance(entry, dict):
        return entry
    if not path.exists():
        raise DataError(f"{path}: not a golden file with its .json beside it (no such file)")
    raise UnknownKind(f"{path.stem}, of which {index} says nothing")


def read(path: Path) -> dict[str, Tensor]:
    """All arrays of the .npz.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with np.load(path) as arrays:
            here = torch.get_default_device()
            return {name: torch.from_numpy(np.array(arrays[name])).to(here) for name in arrays.files}
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path}: not a golden file ({error})") from None


def kind_of(name: str, arrays: dict[str, Tensor]) -> ModuleType:
    """The module that computes a file.

    Raises:
        UnknownKind: none does.
    """
    names = [module.name for module in pkgutil.iter_modules(kinds.__path__)]
    for kind in sorted(names, key=len, reverse=True):
        if name.startswith(kind):
            return import_module(f"{kinds.__name__}.{kind}")
    modules = [import_module(f"{kinds.__name__}.{kind}") for kind in names]
    fitting = [
        module
        for module in modules
        if set(module.ARRAYS) <= set(arrays) and len(module.ARRAYS) >= min(TELLING, len(arrays) / 2)
    ]
    if not fitting:
        raise UnknownKind(name)
    return max(fitting, key=lambda module: len(module.ARRAYS))
