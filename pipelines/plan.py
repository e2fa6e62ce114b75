"""Which documents go into which shard: decided from the listing of the sources alone.

Units are taken in order until a shard holds its share of text, and no shard holds two sources.  The plan does not
depend on workers, on what was built before, or on the content of the files, so it can be made again at any time; it
is never held in memory whole.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

from pipelines.sources import BadDocument, Document, Source, Unit, read_units


@dataclass(frozen=True)
class ShardPlan:
    """What one shard is made of: units of one source, in order; duplicates: positions of documents to be left out."""

    number: int
    source: str
    units: tuple[Unit, ...]
    duplicates: tuple[int, ...] = ()


@dataclass(frozen=True)
class Listing:
    """The sources, counted: shards, bytes of all units, and a digest of every unit's place, range and stamp."""

    shards: int
    text_bytes: int
    digest: str


def plan_shards(sources: Sequence[Source], shard_size: int) -> Iterator[ShardPlan]:
    """The shards in order.  shard_size: bytes of text per shard; one document may be larger, and is not cut."""
    number = 0
    for source in sources:
        units: list[Unit] = []
        size = 0
        for unit in source.units(shard_size):
            if units and size + unit.end - unit.start > shard_size:
                yield ShardPlan(number, source.name, tuple(units))
                number, units, size = number + 1, [], 0
            units.append(unit)
            size += unit.end - unit.start
        if units:
            yield ShardPlan(number, source.name, tuple(units))
            number += 1


def list_sources(sources: Sequence[Source], shard_size: int) -> Listing:
    """Go through the whole plan once.  DataError: a source with nothing in it."""
    shards, size, digest = 0, 0, hashlib.sha256()
    for plan in plan_shards(sources, shard_size):
        shards += 1
        for unit in plan.units:
            size += unit.end - unit.start
            # Not the URL: a corpus that was moved, times and all, is the same corpus.
            facts = {**asdict(unit), "url": None, "shard": plan.number}
            digest.update(json.dumps(facts, sort_keys=True).encode() + b"\n")
    return Listing(shards, size, digest.hexdigest())


def sample(
    sources: Sequence[Source],
    shard_size: int,
    listing: Listing,
    budget: int,
    text_field: str,
    takes: Callable[[str], bool] = lambda text: True,
) -> Iterator[Document | BadDocument]:
    """About `budget` characters of the documents that are taken, spread evenly; all of it where it is smaller."""
    seen = taken = 0
    for plan in plan_shards(sources, shard_size):
        for unit in plan.units:
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
