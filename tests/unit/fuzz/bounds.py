"""What reading a foreign file may cost, and damage of files for property tests."""

import json
import os
import resource
import time
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from brt_dist.errors import BrtError

SECONDS, BYTES = 2.0, 200 << 20  # of processor time and memory, for an input of at most 1 MB
REFERENCE_SECONDS = 0.15  # of `_reference`, on an idle processor of 2021
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "15"))  # of each property; `make fuzz` takes many more


def read(action: Callable[[], Any], *expected: type[BaseException]) -> BaseException | None:
    """Read a file: it succeeds or raises an error of ours, within bounds; returns the error."""
    began, most = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    error: BaseException | None = None
    try:
        action()
    except (BrtError, *expected) as found:
        error = found
        assert str(found).strip()
    took = time.process_time() - began
    assert took < SECONDS or took < SECONDS * _slowness()
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - most) * 1024 < BYTES
    return error


def _slowness() -> float:
    """How many times as long this processor takes, at its current load."""
    began = time.process_time()
    for _ in range(4):
        json.loads(b"[" + b"[]," * 300_000 + b"[]]")
    return (time.process_time() - began) / REFERENCE_SECONDS


_leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from([10**400, -(2**63), 2**64, "9" * 50, "a/../../b", "\udcff", "\x00", "[/b]", "$x_$", 1e308, -1])
)
values = st.recursive(
    _leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """`content` with some bytes replaced, cut off, put in twice or lost."""
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        begin = draw(st.integers(0, len(data)))
        end = min(begin + draw(st.integers(0, 8)), len(data))
        data[begin:end] = draw(st.binary(max_size=8) | st.just(b"") | st.just(bytes(data[:40])))
    return bytes(data)


@st.composite
def altered(draw: st.DrawFn, value: Any) -> Any:
    """A JSON value in which some values, at any depth, are replaced or missing."""
    if draw(st.integers(0, 5)) == 0:
        return draw(values)
    if isinstance(value, dict) and value:
        key = draw(st.sampled_from(sorted(value)))
        rest = {name: inner for name, inner in value.items() if name != key}
        if draw(st.integers(0, 4)) == 0:
            return rest
        return rest | {key: draw(altered(value[key]))}
    if isinstance(value, list) and value:
        place = draw(st.integers(0, len(value) - 1))
        return [*value[:place], draw(altered(value[place])), *value[place + 1 :]]
    return draw(values)


def large(kind: str) -> bytes:
    """Inputs of 1 MB that have been slow or deep for readers."""
    return {
        "deep list": b"[" * (1 << 20),
        "deep object": b'{"a":' * (1 << 17),
        "nulls": b"\0" * (1 << 20),
        "one number": b"9" * (1 << 20),
        "one text": b'"' + b"a" * ((1 << 20) - 2) + b'"',
        "many keys": b"{" + b",".join(b'"%d":{}' % n for n in range(80_000)) + b"}",
        "many lists": b"[" + b"[]," * (300_000) + b"[]]",
        "lines": b'{"event":"step","step":1}\n' * 40_000,
    }[kind]


LARGE = ("deep list", "deep object", "nulls", "one number", "one text", "many keys", "many lists", "lines")
