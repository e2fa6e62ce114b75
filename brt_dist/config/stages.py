"""Which layers each pipeline stage has: explicit in the config, or balanced by the work of a training step."""

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate, pairwise

from brt_dist.config.schema import Config

_TRAINED, _RECOMPUTED = 3, 4  # forward passes that a training step costs: a backward pass counts as two


def stage_layers(config: Config) -> list[range]:
    """The layers of each stage, in order; `model.vocab_size` must be set, as the logits count.

    Raises:
        ValueError: there are more stages than layers, or `parallel.stage_layers` does not fit; the rules refuse both.
    """
    counts = config.parallel.stage_layers
    if counts:
        if len(counts) != config.parallel.pipeline or sum(counts) != config.model.layers:
            raise ValueError(f"parallel.stage_layers={list(counts)} does not fit the pipeline and the layers")
        return _ranges([0, *accumulate(counts)])
    *layers, head = work(config)
    layers[-1] += head
    return _ranges(_balanced(tuple(layers), config.parallel.pipeline))


def work(config: Config) -> list[int]:
    """FLOPs of a training step per token: of each layer, and last of the logits; matrix products only."""
    model = config.model
    recompute = config.parallel.recompute
    mixer_passes = _TRAINED if recompute == "none" else _RECOMPUTED
    ffn_passes = _RECOMPUTED if recompute == "layer" else _TRAINED
    layers = [
        round(
            mixer_passes * model.mixer_of(index).flops(model, executed=True)
            + ffn_passes * model.ffn_of(index).flops(model, True)
        )
        for index in range(model.layers)
    ]
    return [*layers, _TRAINED * 2 * model.width * (model.vocab_size or 0)]


def balanced(work: Sequence[int], stages: int) -> list[int]:
    """Cut a list into `stages` parts: where each begins, and the length of the list.

    The largest part is as small as possible; among such cuts, the one with the most equal parts (least sum of squares),
    and among those the one with most in the first parts.
    """
    if not 0 < stages <= len(work):
        raise ValueError(f"{len(work)} layers cannot be cut into {stages} stages")
    sums = [0, *accumulate(work)]
    most = _smallest_limit(sums, stages)
    none = (-1, 0)
    # best[begin]: least sum of squares of work[begin:] in the parts so far, and where its first part ends
    best = [none] * len(work) + [(0, len(work))]
    found: list[list[tuple[int, int]]] = []
    for _ in range(stages):
        longer = [none] * (len(work) + 1)
        for begin in range(len(work)):
            for end in range(begin + 1, len(work) + 1):
                part = sums[end] - sums[begin]
                if part > most:
                    break
                squares = best[end][0] + part * part
                # of equally good ends, the later one wins
                if best[end] != none and (longer[begin] == none or squares <= longer[begin][0]):
                    longer[begin] = (squares, end)
        found.append(longer)
        best = longer
    bounds = [0]
    for rest in reversed(found):
        bounds.append(rest[bounds[-1]][1])
    return bounds


@lru_cache(maxsize=64)  # a plan needs the same cut many times
def _balanced(work: tuple[int, ...], stages: int) -> tuple[int, ...]:
    return tuple(balanced(work, stages))


def _smallest_limit(sums: Sequence[int], stages: int) -> int:
    """The smallest size of the largest part, if a list with these running sums is cut into `stages` parts."""
    low, high = 0, sums[-1]
    while low < high:
        middle = (low + high) // 2
        if _parts(sums, middle) <= stages:
            high = middle
        else:
            low = middle + 1
    return high


def _parts(sums: Sequence[int], most: int) -> float:
    """How many parts a list needs if none may exceed `most`."""
    parts, begin = 1, 0
    for index in range(1, len(sums)):
        if sums[index] - sums[index - 1] > most:
            return float("inf")
        if sums[index] - begin > most:
            parts, begin = parts + 1, sums[index - 1]
    return parts


def _ranges(bounds: Sequence[int]) -> list[range]:
    return [range(begin, end) for begin, end in pairwise(bounds)]
