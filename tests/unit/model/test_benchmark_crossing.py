"""The comparison of budgets: models of equal size that read equally much; differences and their errors."""

import argparse
from pathlib import Path

import numpy as np
import pytest

from benchmarks.crossing import configuration, kinds
from benchmarks.crossing_report import differences, over_documents
from benchmarks.models import parameter_count
from brt_dist.config.rules import check

OPTIONS = argparse.Namespace(out=Path("out"), window=16, set=[])


@pytest.mark.parametrize("kind", kinds(16, 16))
def test_all_are_equally_large_and_read_equally_much(kind: str) -> None:
    config, reference = (configuration(name, 0, 250, OPTIONS) for name in (kind, "recurrent"))
    check(config)
    assert parameter_count(config.model) == pytest.approx(parameter_count(reference.model), rel=2e-3)
    assert config.data.streams * config.data.segment == reference.data.streams * reference.data.segment
    assert config.parallel.micro_batch == config.data.streams
    sharp = [mixer.query_length for mixer in config.model.mixers.values()]
    assert (4.0 in sharp) == ("sharp" in kind)


def test_a_difference_is_that_of_the_same_seed_and_budget() -> None:
    shared = {"window": 16, "set": [], "document_bits": [1.0, 1.0], "document_bytes": [1, 1]}
    cells = [
        shared | {"kind": kind, "seed": seed, "steps": steps, "carried": carried}
        for kind, seed, steps, carried in [
            ("recurrent", 0, 250, 2.5), ("recurrent", 1, 250, 2.75), ("recurrent", 2, 250, 9.0),
            ("sliding window", 0, 250, 3.0), ("sliding window", 1, 250, 3.0), ("sliding window", 2, 500, 3.0),
            ("sliding window, sharp", 0, 250, 7.0),
        ]
    ]  # fmt: skip
    assert [more for more, _ in differences(cells, cells[:3])] == [-0.5, -0.25]


def test_the_error_over_documents_is_that_of_documents_drawn_anew() -> None:
    """Against the spread over many draws."""
    draw = np.random.default_rng(0)
    sizes = draw.integers(100, 200, (4000, 30))
    more = sizes * draw.normal(0.3, 0.1, sizes.shape)
    told = [
        over_documents(
            {"document_bits": bits.tolist(), "document_bytes": size.tolist()},
            {"document_bits": [0.0] * 30, "document_bytes": size.tolist()},
        )
        for bits, size in zip(more, sizes, strict=True)
    ]
    spread = (more.sum(1) / sizes.sum(1)).std()
    assert np.sqrt(np.mean(np.square(told))) == pytest.approx(spread, rel=0.05)
