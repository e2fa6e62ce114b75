"""The simulator walks what the engine executes: a step of the real engine, on fake process groups."""

from typing import Any

import pytest

from brt_dist.planning.simulator.instructions import instructions
from tests.scale.settings import small
from tests.scale.world import fake_world

STAGES, MICRO_BATCHES = 4, 5


@pytest.mark.parametrize("stage", range(STAGES))
def test_instructions_and_transfers_are_those_of_the_engine(stage: int) -> None:
    config = small({"pipeline": STAGES}, micro_batches=MICRO_BATCHES)
    executed: list[str] = []
    with fake_world(config, rank=stage) as world, world.engine() as engine:
        engine.train_step(world.inputs(), 1e-3)  # the shapes are sent once
        _listen(engine._deepspeed, executed)
        with world.recorder(engine) as recorder:
            world.recorded_step(engine, recorder, 2)
    walked = [one.kind.value for one in instructions(MICRO_BATCHES, STAGES, stage)]
    assert walked == executed
    crossed = [one for one in walked if one.startswith(("Send", "Recv"))]
    calls = [one for one in recorder.collectives if one.op in ("send", "recv")]
    assert [one.op for one in calls] == [name[:4].lower() for name in crossed]
    ahead = {"SendActivation": 1, "RecvGrad": 1, "RecvActivation": -1, "SendGrad": -1}
    assert [one.peer for one in calls] == [stage + ahead[name] for name in crossed]


def test_all_ranks_agree_after_the_reduction_and_before_the_update() -> None:
    """As the simulator lets updates begin together."""
    with fake_world(small({"pipeline": 2, "data": 2}), rank=1) as world, world.engine() as engine:
        engine.train_step(world.inputs(), 1e-3)
        with world.recorder(engine) as recorder:
            world.recorded_step(engine, recorder, 2)
    of_data = [(one.group, one.op) for one in recorder.collectives if one.op not in ("send", "recv") and one.ranks > 1]
    agreed = of_data.index(("world", "all_reduce"))
    assert ("data", "reduce_scatter") in of_data[:agreed]
    assert {op for _, op in of_data[agreed + 1 :]} == {"all_gather"}


def _listen(deepspeed: Any, executed: list[str]) -> None:
    """Note the name of each instruction that an engine executes."""

    def listened(execute: Any, name: str) -> Any:
        def call(self: Any, **arguments: Any) -> Any:
            executed.append(name)
            return execute(self, **arguments)

        return call

    table = {kind: listened(execute, kind.__name__) for kind, execute in deepspeed._INSTRUCTION_MAP.items()}
    deepspeed._INSTRUCTION_MAP = table
