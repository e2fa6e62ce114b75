"""Which documents go into which shard: decided only from the listing of the sources.

Units are taken in order until a shard holds its share of text, and no shard mixes sources.  The division does not
depend on workers, on what was built before, or on the text itself, so it can be repeated at any time.  The list of all
shards is never entirely in memory.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field

from pipelines.sources import BadDocument, Document, Source, Unit, most_common, read_units


@dataclass(frozen=True)
class ShardContents:
    """What one shard is made of.

    Attributes:
        number: of the shard, from 0.
        source: name of the source that all its units come from.
        units: in order.
        duplicates: positions of documents to leave out.
    """

    number: int
    source: str
    units: tuple[Unit, ...]
    duplicates: tuple[int, ...] = ()


@dataclass(frozen=True)
class Listing:
    """The sources, counted.

    Attributes:
        shards: that they make.
        text_bytes: of all units.
        digest: of every unit's place, range and stamp.
        left_out: files and folders that were passed over, by source and reason.
    """

    shards: int
    text_bytes: int
    digest: str
    left_out: Mapping[str, Mapping[str, int]] = field(default_factory=dict, compare=False)


def divide_into_shards(
    sources: Sequence[Source], shard_size: int, left_out: Mapping[str, Counter[str]] | None = None
) -> Iterator[ShardContents]:
    """Yield the contents of each shard, in order.

    Args:
        sources: what to divide.
        shard_size: bytes of text per shard; a document that is larger is not cut.
        left_out: by source, counts what is left out, by reason.
    """
    number = 0
    for source in sources:
        units: list[Unit] = []
        size = 0
        for unit in source.units(shard_size, left_out[source.name] if left_out else None):
            if units and size + unit.end - unit.start > shard_size:
                yield ShardContents(number, source.name, tuple(units))
                number, units, size = number + 1, [], 0
            units.append(unit)
            size += unit.end - unit.start
        if units:
            yield ShardContents(number, source.name, tuple(units))
            number += 1


def list_sources(sources: Sequence[Source], shard_size: int) -> Listing:
    """Go through all shards once and count.

    Raises:
        DataError: a source is empty.
    """
    shards, size, digest = 0, 0, hashlib.sha256()
    left_out = {source.name: Counter[str]() for source in sources}
    for contents in divide_into_shards(sources, shard_size, left_out):
        shards += 1
        for unit in contents.units:
            size += unit.end - unit.start
            # Not the URL: a corpus that was moved with its times is the same corpus.
            facts = {**asdict(unit), "url": None, "shard": contents.number}
            digest.update(json.dumps(facts, sort_keys=True).encode() + b"\n")
    counted = {name: most_common(reasons) for name, reasons in left_out.items() if reasons}
    return Listing(shards, size, digest.hexdigest(), counted)


def sample(
    sources: Sequence[Source],
    shard_size: int,
    listing: Listing,
    budget: int,
    text_field: str,
    takes: Callable[[str], bool] = lambda text: True,
) -> Iterator[Document | BadDocument]:
    """About `budget` characters of the selected documents, spread evenly; all of them if there are fewer."""
    seen = taken = 0
    for contents in divide_into_shards(sources, shard_size):
        for unit in contents.units:
            seen += unit.end - unit.start
            owed = budget * seen / max(listing.text_bytes, 1)
            if taken >= owed and budget < listing.text_bytes:
                continue
            for item in read_units([unit], text_field):
                if isinstance(item, Document) and not takes(item.text):
                    continue
                yield item
                taken += len(item.text) if isinstance(item, Document) else 0
                if taken >= owed and budget < listing.text_bytes:
                    break
