"""Any layout continues from what any other saved (all pairs: `python -m tests.parallel.relayout`)."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.parallel.pool import RankPool
from tests.parallel.relayout import LAYOUTS, LOSS, Relayout, attempt, config, saved
from tests.parallel.test_masked import MODEL as ENCODER

pytestmark = pytest.mark.slow

NAMES = list(LAYOUTS)
# each layout saves once and loads once, by steps of two through the list: no layout meets itself
PAIRS = [(name, NAMES[(i + 2) % len(NAMES)]) for i, name in enumerate(NAMES)]


@pytest.fixture(scope="module")
def relayout(ranks: RankPool, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Relayout]:
    yield Relayout(ranks, tmp_path_factory.mktemp("relayout"))


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_goes_on_on_another_layout(relayout: Relayout, source: str, target: str) -> None:
    assert relayout.compare(source, target) <= LOSS


@pytest.mark.parametrize("streams", [2, 6])
def test_streams_come_and_go_alike_on_all_layouts(
    relayout: Relayout, ranks: RankPool, tmp_path: Path, streams: int
) -> None:
    """Dropped streams hand their documents back, added ones begin new ones; only if allowed."""
    losses = {}
    for layout in ("one", "tp2-pp2-dp2"):
        run = relayout.copy("tp2", tmp_path / layout)
        data = {"dataset": relayout.dataset, "segment": 32, "streams": streams}
        about = {"directory": run, "steps": 9, "precision": "fp32"}
        given = config(relayout.dataset, run, LAYOUTS[layout], data=data, run=about | {"allow": ("data.streams",)})
        losses[layout] = ranks.run(given.parallel.world_size, attempt, given, 4)[0]
        cursor = saved(run / "checkpoints")["cursor"]
        assert len(cursor["ordinal"]) == streams
        refused = config(relayout.dataset, run, LAYOUTS[layout], run=about)  # four streams again
        with pytest.raises(AssertionError, match=rf"data\.streams: {streams} in the run, 4 now"):
            ranks.run(given.parallel.world_size, attempt, refused, 1)
    assert losses["one"] == pytest.approx(losses["tp2-pp2-dp2"], abs=LOSS)


def test_factored_statistics_and_bf16_too(ranks: RankPool, tmp_path: Path) -> None:
    """bf16: the losses differ by rounding, the files may not."""
    big = {
        "layers": 2,
        "width": 128,
        "head_dim": 64,
        "mlp_width": 128,
        "states": 128,
        "vocab_size": 256,
        "dropout": 0.0,
    }
    given = Relayout(
        ranks,
        tmp_path,
        model=big,
        optimizer={"name": "adafactor", "learning_rate": 0.03},
        run={"precision": "bf16"},
    )
    for source, target in (("tp2", "dp2"), ("dp2", "tp2-pp2")):
        assert given.compare(source, target) <= 0.05


def test_sequence_parallel_and_not(ranks: RankPool, tmp_path: Path) -> None:
    given = Relayout(ranks, tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(LAYOUTS, "split", {"tensor": 2, "data": 2, "zero_stage": 3, "sequence_parallel": True})
        assert given.compare("split", "pp2") <= LOSS
        assert given.compare("tp2", "split") <= LOSS


def test_streams_that_are_dealt_out_unevenly(ranks: RankPool, tmp_path: Path) -> None:
    """Three ranks share four streams, as after the loss of a node; the idle micro-batches leave no trace."""
    given = Relayout(ranks, tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(LAYOUTS, "uneven", {"data": 3, "uneven_streams": True})
        assert given.compare("uneven", "pp2") <= LOSS
        assert given.compare("tp2", "uneven") <= LOSS


@pytest.mark.parametrize(("source", "target"), [("tp2", "dp2-zero3"), ("pp2", "tp2"), ("dp2-zero3", "pp2")])
def test_encoders_too(encoders: Relayout, source: str, target: str) -> None:
    """Of both kinds, beside layers with a state."""
    assert encoders.compare(source, target) <= LOSS


@pytest.fixture(scope="module")
def encoders(ranks: RankPool, tmp_path_factory: pytest.TempPathFactory) -> Relayout:
    return Relayout(ranks, tmp_path_factory.mktemp("encoders"), model=ENCODER)
