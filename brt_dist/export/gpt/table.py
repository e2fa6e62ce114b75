"""A table of what was taken from a GPT, what is new, and what was left out."""

import re
from collections.abc import Collection, Mapping, Sequence

from brt_dist.export.gpt.rules import Rule
from brt_dist.export.gpt.shape import GptShape

_LAYER = re.compile(r"^(layers|h)\.\d+\.")
_NO_WEIGHTS = re.compile(r"(^|\.)(attn\.(masked_)?bias|rotary_emb\.inv_freq)$")  # buffers that some files hold


def origin(shape: GptShape, made: Mapping[str, Rule], ours: Sequence[str], theirs: Collection[str]) -> str:
    """The table.

    Args:
        shape: of the GPT.
        made: rules by names of ours.
        ours: all names of ours, in order.
        theirs: all names of the GPT, without the prefix of the whole model.
    """
    taken: dict[tuple[str, str, str], int] = {}
    new: dict[str, int] = {}
    for name in ours:
        if name in made:
            sources = ", ".join(_pattern(source) for source, _ in made[name].sources)
            key = (_pattern(name), sources, made[name].how)
            taken[key] = taken.get(key, 0) + 1
        else:
            new[_pattern(name)] = new.get(_pattern(name), 0) + 1
    used = {source for rule in made.values() for source, _ in rule.sources}
    left: dict[str, int] = {}
    for name in sorted(theirs - used if isinstance(theirs, set) else set(theirs) - used):
        if not _NO_WEIGHTS.search(name):
            left[_pattern(name)] = left.get(_pattern(name), 0) + 1
    rows = [("tensor", "of", "how"), *((_times(name, n), of, how) for (name, of, how), n in taken.items())]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    lines = [f"  {a:<{widths[0]}}  {b:<{widths[1]}}  {c}" for a, b, c in rows]
    lines += [f"  new: {_times(name, count)}" for name, count in new.items()]
    lines += [f"  not taken: {_times(name, count)}" for name, count in left.items()]
    lines += [f"  differs: {text}" for text in (*_ATTENTION, *shape.differences)]
    return "\n".join(lines)


_ATTENTION = (
    "attention: queries and keys have unit length, and each head has a scale; a token sees the W tokens before it, but "
    "not itself",
)


def _pattern(name: str) -> str:
    return _LAYER.sub(r"\1.*.", name)


def _times(name: str, count: int) -> str:
    return name if count == 1 and "*" not in name else f"{name} ({count})"
