"""Results of evaluations (loss by position, worth of memory, layer statistics): the same in every layout, and right."""

from pathlib import Path
from typing import Any

import pytest

from brt_dist.config.schema import Config
from brt_dist.evaluation.forgetting import MemoryUse
from tests.parallel.pool import RankPool
from tests.parallel.relayout import config, documents

pytestmark = pytest.mark.slow

LAYOUTS: dict[str, dict[str, Any]] = {
    "one": {},
    "pp2": {"pipeline": 2},
    "dp2-zero3": {"data": 2, "zero_stage": 3},
    "tp2-pp2": {"tensor": 2, "pipeline": 2, "sequence_parallel": True},
}


USES: tuple[MemoryUse, ...] = ("carried", "cleared", "state cleared", "cache cleared")


def rank_main(rank: int, store: str, given: Config) -> list[Any]:
    """Evaluations with each use of memory; of one process also what other implementations find."""
    import numpy as np
    import torch.distributed as dist

    from benchmarks.positions import profile
    from brt_dist.data.dataset import Dataset
    from brt_dist.evaluation.evaluate import evaluate
    from brt_dist.evaluation.positions import doubling
    from brt_dist.evaluation.score import score
    from brt_dist.model.model import BlockRecurrentModel
    from brt_dist.parallel.device import choose
    from brt_dist.parallel.engine import build_engine
    from brt_dist.parallel.layout import Layout, finalize, initialize

    layout = Layout.of(given, rank)
    device = choose("cpu", rank)
    initialize(layout, device, 120.0, dist.FileStore(store, layout.world_size))
    try:
        with Dataset.open(given.data.dataset) as data:
            engine = build_engine(given, layout, device)
            found: list[Any] = [evaluate(engine, data, 10_000, use, use == "carried") for use in USES]
            engine.close()
            if layout.world_size == 1:
                edges = doubling(given.model.window, int(data.lengths.max()))
                model = BlockRecurrentModel(given.model, given.run.seed).eval()
                known = profile(model, given, data, edges)
                nats = known.bits.sum(0) * np.log(2)
                found.append([(edge, *sums) for edge, *sums in zip(edges, nats, known.tokens.sum(0), strict=True)])
                read = {"segment": given.data.segment, "streams": given.data.streams}
                found.append([score(model, data, memory_use=use, **read) for use in USES])
            return found
    finally:
        finalize()


def test_loss_by_position_is_the_same_in_every_layout(ranks: RankPool, tmp_path: Path) -> None:
    documents(tmp_path)
    found = {}
    for name, parallel in LAYOUTS.items():
        given = config(tmp_path / "dataset", tmp_path / name, parallel, model={"gate": "lstm"})
        found[name] = ranks.run(given.parallel.world_size, rank_main, given)
    ((carried, cleared, *parts, known, scores),) = found["one"]
    assert [(p.begin, p.tokens) for p in carried.positions] == [(edge, count) for edge, _, count in known if count]
    assert len(carried.positions) > 2 and carried.positions[-1].end is None
    nats = [total / count for _, total, count in known if count]
    assert [p.loss for p in carried.positions] == pytest.approx(nats, rel=1e-5)
    # in documents of at most one segment nothing is forgotten; farther on the loss differs
    assert [p.tokens for p in cleared.positions] == [p.tokens for p in carried.positions]
    assert [p.loss for p in cleared.positions] != [p.loss for p in carried.positions]
    for result, score in zip((carried, cleared, *parts), scores, strict=True):
        assert result.loss == pytest.approx(score.nats / score.tokens, rel=1e-6)
    assert len({result.loss for result in (carried, cleared, *parts)}) == 4
    beyond_segment = sum(p.tokens for p in carried.positions if p.begin >= 32)  # in no case read where they begin
    assert beyond_segment < carried.carried_tokens < carried.tokens
    (layer,) = carried.layers
    assert layer.layer == 1 and 0 < layer.values["from_states"] < 1
    for evaluation in (carried, cleared, *parts):
        total = sum(p.loss * p.tokens for p in evaluation.positions)
        assert sum(p.tokens for p in evaluation.positions) == evaluation.tokens
        assert total / evaluation.tokens == pytest.approx(evaluation.loss, rel=1e-6)
    for results in found.values():
        for rank in results:  # rank 0 writes them down, wherever the last stage is
            for evaluation, other in zip((carried, cleared, *parts), rank, strict=False):
                assert [p.tokens for p in other.positions] == [p.tokens for p in evaluation.positions]
                assert other.carried_tokens == evaluation.carried_tokens
                assert [p.loss for p in other.positions] == pytest.approx(
                    [p.loss for p in evaluation.positions], rel=1e-5
                )
                for seen, expected in zip(other.layers, evaluation.layers, strict=True):
                    assert seen.values == pytest.approx(expected.values, rel=1e-4)
