"""The comparison of budgets: models of equal size that read equally much; differences and their errors."""

import argparse
from pathlib import Path

import numpy as np
import pytest

from benchmarks.crossing import configuration, kinds
from benchmarks.crossing_plot import draw
from benchmarks.crossing_report import changes, differences, over_documents, settings
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


def test_rows_tell_streams_segment_and_rate() -> None:
    assert settings([]) == ["16 x 256", "0.003"]
    given = ["data.streams=32", "data.segment=128", "parallel.micro_batch=32", "optimizer.learning_rate=0.006"]
    assert settings(given) == ["32 x 128", "0.006"]
    assert settings(["model.heads=1", "model.head_dim=64"]) == ["16 x 256, 1 head of 64", "0.003"]
    assert settings(["model.layers=2"]) == ["16 x 256, model.layers=2", "0.003"]


def test_results_that_are_few_have_a_plot(tmp_path: Path) -> None:
    draw([], tmp_path / "few.png")
    assert (tmp_path / "few.png").read_bytes().startswith(b"\x89PNG")


def test_a_change_is_set_against_no_change_with_the_same_seed() -> None:
    shared = {"kind": "recurrent, sharp", "steps": 500, "document_bits": [1.0, 1.0], "document_bytes": [1, 1]}
    layers = {"2": {"state_rank": 1.5, "kept": 0.25}}
    cells = [
        shared | {"set": given, "seed": seed, "carried": bits, "state cleared": bits + 0.5, "layers": layers,
                  "parameters": 1000 + 10 * len(given)}
        for given, seed, bits in [
            (["a=1"], 0, 2.0), (["a=1"], 1, 3.0), (["a=1", "b=2"], 0, 2.25), (["a=1", "b=2"], 1, 3.75), ([], 0, 9.0),
        ]
    ]  # fmt: skip
    assert changes(cells, ["a=1"], 500).splitlines()[2:] == [
        "| none | 1,010 |  | 0.500 | 1.50 | 0.25 |",
        "| `b=2` | 1,020 | +0.500 ± 0.354, 2 seeds | 0.500 | 1.50 | 0.25 |",
    ]
    assert changes(cells, ["a=1"], 250).count("\n") == 1
