"""A corpus that any machine has: the Python packages of its environment, whole packages held out."""

import hashlib
import sysconfig
from collections import defaultdict
from collections.abc import Iterator, Sequence
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Literal

from brt_dist.errors import DataError
from pipelines.corpora import Corpus, Text, is_text, write_corpus

HELD_OUT = 16  # one package in this many, chosen by a hash of its name
SMALLEST = 20_000  # bytes of a document that is a folder


def write_code(folder: Path, roots: Sequence[Path] = (), per: Literal["package", "folder"] = "package") -> Corpus:
    """The modules of each package, joined in the order of their paths, with the path above each.

    Args:
        roots: folders that hold packages; none: the environment's site-packages.
        per: a document is a package, or a folder of one with at least 20 kB of modules.

    Raises:
        DataError: there is no such folder, or fewer than two packages; `folder` holds something.
    """
    places = [Path(sysconfig.get_path("purelib"))] if not roots else list(roots)
    parts: dict[str, dict[str, Text]] = {"train": {}, "validation": {}}
    packages = sorted({package for place in places for package in _packages(place)})
    for package in packages:
        documents = _documents(package, per)
        parts["validation" if _is_held_out(package.name) else "train"] |= documents
    for part, texts in parts.items():
        if not texts:
            raise DataError(
                f"{', '.join(map(str, places))}: {len(packages)} Python packages, and none for {part}; give --from "
                "with a folder that holds more packages, a site-packages for example"
            )
    licences = _licences(places)
    names = sorted({package.name for package in packages})
    origin = (
        f"Python packages of {', '.join(map(str, places))}, one {per} a document, one package of {HELD_OUT} held out; "
        f"licences in corpus.json"
    )
    return write_corpus(folder, origin, parts, {name: licences.get(name, "not told") for name in names})


def _packages(place: Path) -> Iterator[Path]:
    if not place.is_dir():
        raise DataError(f"{place}: no such folder; --from takes a folder that holds Python packages")
    for path in place.iterdir():
        if path.is_dir() and path.name.isidentifier() and path.name != "__pycache__":
            yield path


def _documents(package: Path, per: str) -> dict[str, Text]:
    modules: dict[str, list[bytes]] = defaultdict(list)
    times: dict[str, float] = defaultdict(float)
    for path in sorted(package.rglob("*.py")):
        relative = path.relative_to(package.parent)
        data = path.read_bytes()
        if data.strip() and is_text(data):
            name = package.name if per == "package" else ".".join(relative.parent.parts)
            modules[name].append(f"# {relative.as_posix()}\n".encode() + data)
            times[name] = max(times[name], path.stat().st_mtime)
    joined = {name: b"\n".join(texts) for name, texts in modules.items()}
    return {
        f"{name}.txt": Text(data, times[name])
        for name, data in joined.items()
        if per == "package" or len(data) >= SMALLEST
    }


def _is_held_out(name: str) -> bool:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[4:8]) % HELD_OUT == 0


def _licences(places: Sequence[Path]) -> dict[str, str]:
    """The licence of each package, according to the distributions there."""
    found: dict[str, str] = {}
    for distribution in distributions(path=[str(place) for place in places]):
        told = _licence(distribution)
        for file in distribution.files or ():
            found.setdefault(file.parts[0], told)
    return found


def _licence(distribution: Distribution) -> str:
    about = distribution.metadata
    classified = [line.rsplit(" :: ", 1)[1] for line in about.get_all("Classifier") or () if line.startswith("License")]
    lines = [*(about.get_all("License-Expression") or ()), *classified, *(about.get_all("License") or ())]
    return lines[0].strip().splitlines()[0][:100] if lines and lines[0].strip() else "not told"
