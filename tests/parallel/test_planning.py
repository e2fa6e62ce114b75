"""What the plan says a rank holds, against what the ranks of real engines hold after an update."""

from pathlib import Path
from typing import Any

import pytest

from brt_dist.config.schema import Config
from brt_dist.kinds import OPTIMIZERS
from brt_dist.planning.memory import held_by, plan_of
from tests.parallel.pool import RankPool
from tests.parallel.relayout import config, documents

pytestmark = pytest.mark.slow

CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "one-zero0": ({"zero_stage": 0}, {}),
    "dp2-zero1": ({"data": 2}, {}),
    "tp2-sequence-bf16": ({"tensor": 2, "sequence_parallel": True}, {"precision": "bf16"}),
    "pp2-bf16": ({"pipeline": 2}, {"precision": "bf16"}),
    "dp2-zero2-bf16": ({"data": 2, "zero_stage": 2}, {"precision": "bf16"}),
    "dp2-zero3": ({"data": 2, "zero_stage": 3}, {}),
    "dp2-zero2-host": ({"data": 2, "zero_stage": 2, "zero": {"offload_optimizer": "cpu"}}, {"precision": "bf16"}),
}
PADDING = 0.02  # ZeRO cuts flat tensors into equal and aligned parts


def rank_main(rank: int, store: str, given: Config) -> dict[str, int]:
    import torch.distributed as dist

    from brt_dist.data.dataset import Dataset
    from brt_dist.event_log import EventLog
    from brt_dist.parallel.device import choose
    from brt_dist.parallel.layout import Layout, finalize, initialize
    from brt_dist.training.build import build_trainer
    from brt_dist.training.held import held
    from brt_dist.training.stopping import StopFlag

    layout = Layout.of(given, rank)
    device = choose("cpu", rank)
    initialize(layout, device, 120.0, dist.FileStore(store, layout.world_size))
    events = EventLog(Path(given.run.directory), 1, enabled=rank == 0)
    try:
        with Dataset.open(given.data.dataset) as data:
            trainer = build_trainer(given, Path(given.run.directory), layout, device, events, data, None, StopFlag())
            trainer.run()
            found = held(trainer.engine)
            trainer.close()
            return {**found.to_json(), "stage": layout.stage}
    finally:
        events.close()
        finalize()


@pytest.mark.parametrize(
    ("case", "optimizer"),
    [
        *((case, "adamw") for case in CASES),
        *((case, name) for name in OPTIMIZERS if name != "adamw" for case in ("dp2-zero1", "tp2-sequence-bf16")),
    ],
)
def test_ranks_hold_what_was_planned(ranks: RankPool, tmp_path: Path, case: str, optimizer: str) -> None:
    documents(tmp_path)
    (tmp_path / "run").mkdir()
    parallel, run = CASES[case]
    run = {"steps": 1, "evaluation_steps": 1, **run}
    given = config(tmp_path / "dataset", tmp_path / "run", parallel, run=run, optimizer={"name": optimizer})
    for found in ranks.run(given.parallel.world_size, rank_main, given):
        planned = held_by(given, found.pop("stage"))
        assert (found["parameters"], found["carried"]) == (planned.parameters, planned.carried)
        assert found["weights"] == pytest.approx(planned.weights, rel=PADDING)
        assert found["optimizer"] == pytest.approx(planned.optimizer, rel=PADDING)
    assert plan_of(given).fullest_rank.weights >= planned.weights
