"""What an attempt starts from: a checkpoint with or without memory, given weights, or weights that are drawn."""

from typing import Any

import numpy as np
import pytest

from brt_dist.checkpoint.manifest import TensorEntry
from brt_dist.data.cursor import Cursor
from brt_dist.training.resume import resume
from tests.checkpoints import CONFIG, manifest_of

CURSOR = Cursor.from_json(
    {"ordinal": [4, 2], "offset": [16, 0], "part": [0, 0], "next": [5], "tokens": [900], "returned": []}
)


class StubCheckpoint:
    name = "step_00000003"

    def __init__(self, has_memory: bool) -> None:
        names = ["weights/embedding.weight", *(["memory/layers.0/state"] if has_memory else [])]
        tensors = {name: TensorEntry("weights/embedding.safetensors", "F32", (1,)) for name in names}
        self.manifest = manifest_of(3, [], tensors, cursor=CURSOR.to_json())
        self.read = "read"

    def __enter__(self) -> "StubCheckpoint":
        return self

    def __exit__(self, *_: object) -> None: ...


class Stub:
    """The store and the engine; records what is requested."""

    def __init__(self, checkpoint: StubCheckpoint | None, carries_memory: bool = True) -> None:
        self.checkpoint, self.carries_memory, self.log = checkpoint, carries_memory, list[Any]()
        self.config = CONFIG
        self.layout: Any = type("Layout", (), {"streams": 2})

    def open_newest(self) -> StubCheckpoint | None:
        return self.checkpoint

    def is_new_dataset(self, manifest: Any) -> bool:
        return False

    def draw(self) -> None:
        self.log.append("draw")

    def load(self, read: Any, updates: int) -> None:
        self.log.append(("load", read, updates))


def start(stub: Any) -> tuple[Any, list[str]]:
    said: list[str] = []
    return resume(stub, stub, Cursor.fresh(2), "", said.append), said


def test_nothing_is_drawn_where_a_checkpoint_is() -> None:
    stub = Stub(StubCheckpoint(has_memory=True))
    state, said = start(stub)
    assert stub.log == [("load", "read", 3)] and said == ["resumed after step 3"]
    assert np.array_equal(state.cursor.ordinal, CURSOR.ordinal)
    fresh = Stub(None)
    assert start(fresh)[0].step == 0 and fresh.log == ["draw"]


def test_without_memory_streams_go_on_where_they_were_and_it_is_said() -> None:
    state, said = start(Stub(StubCheckpoint(has_memory=False)))
    assert state.step == 3 and "step_00000003 has no memory" in said[0]
    assert state.cursor.ordinal.tolist() == [-1, -1] and state.cursor.returned == ((0, 4, 16), (0, 2, 0))


@pytest.mark.parametrize("has_memory", [False, True])
def test_a_model_without_memory_misses_none(has_memory: bool) -> None:
    state, said = start(Stub(StubCheckpoint(has_memory), carries_memory=False))
    assert said == ["resumed after step 3"] and state.cursor.ordinal.tolist() == [4, 2]
