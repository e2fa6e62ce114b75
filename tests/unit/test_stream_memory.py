"""Two slots: what a forward reads stays as the last finished step left it."""

import pytest
import torch

from brt_dist.errors import CheckpointError
from brt_dist.model.memory import LayerMemory
from brt_dist.parallel.stream_memory import StreamMemory


def layer_memory(value: float, state: bool = True) -> LayerMemory:
    cache = torch.full((2, 4, 1, 3), value)
    return LayerMemory(torch.full((2, 5, 6), value) if state else None, cache, cache + 1)


def memory() -> StreamMemory:
    return StreamMemory({3: layer_memory(0.0), 4: layer_memory(0.0, state=False)}, micro_batches=2)


def fill(given: StreamMemory, value: float) -> None:
    for micro_batch in range(2):
        given.write(3, micro_batch, layer_memory(value + micro_batch))
        given.write(4, micro_batch, layer_memory(value + micro_batch, state=False))


def test_reads_committed_until_the_commit() -> None:
    given = memory()
    fill(given, 10.0)
    assert torch.equal(given.read(3, 1).keys, layer_memory(0.0).keys)
    fill(given, 20.0)  # a forward that runs twice
    given.commit()
    assert torch.equal(given.read(3, 1).keys, layer_memory(21.0).keys)


def test_a_discarded_step_leaves_no_trace() -> None:
    given = memory()
    fill(given, 10.0)
    given.discard()
    with pytest.raises(RuntimeError, match="no forward ran"):
        given.commit()
    assert torch.equal(given.read(4, 0).values, layer_memory(0.0).values)


def test_half_a_step_cannot_be_committed() -> None:
    given = memory()
    given.write(3, 0, layer_memory(1.0))
    with pytest.raises(RuntimeError, match=r"\(3, 1\), \(4, 0\), \(4, 1\)"):
        given.commit()


def test_tensors_hold_all_streams_in_order_and_load_gives_them_back() -> None:
    given = memory()
    fill(given, 10.0)
    given.commit()
    saved = given.tensors()
    assert sorted(saved) == ["layers.3.keys", "layers.3.state", "layers.3.values", "layers.4.keys", "layers.4.values"]
    assert saved["layers.3.state"][:, 0, 0].tolist() == [10.0, 10.0, 11.0, 11.0]
    other = memory()
    other.load(saved)
    assert all(torch.equal(tensor, saved[name]) for name, tensor in other.tensors().items())


def test_other_shapes_are_refused_by_name() -> None:
    saved = memory().tensors()
    with pytest.raises(CheckpointError, match=r"layers\.3\.state is of shape \(3, 5, 6\), expected shape \(4, 5, 6\)"):
        memory().load(saved | {"layers.3.state": saved["layers.3.state"][:3]})
    del saved["layers.4.keys"]
    with pytest.raises(CheckpointError, match=r"layers\.4\.keys is missing"):
        memory().load(saved)
