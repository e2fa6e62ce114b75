"""Two slots: what a forward reads stays as the last finished step left it."""

import pytest
import torch

from brt_dist.model.memory import Memory
from brt_dist.parallel.stream_memory import StreamMemory


def layer_memory(value: float, state: bool = True) -> Memory:
    cache = torch.full((2, 4, 1, 3), value)
    memory = {"keys": cache, "values": cache + 1}
    return {"state": torch.full((2, 5, 6), value), **memory} if state else memory


def memory() -> StreamMemory:
    return StreamMemory({3: layer_memory(0.0), 4: layer_memory(0.0, state=False)}, micro_batches=2)


def fill(given: StreamMemory, value: float) -> None:
    for micro_batch in range(2):
        given.write(3, micro_batch, layer_memory(value + micro_batch))
        given.write(4, micro_batch, layer_memory(value + micro_batch, state=False))


def test_reads_committed_until_the_commit() -> None:
    given = memory()
    fill(given, 10.0)
    assert torch.equal(given.read(3, 1)["keys"], layer_memory(0.0)["keys"])
    fill(given, 20.0)  # a forward that runs twice
    given.commit()
    assert torch.equal(given.read(3, 1)["keys"], layer_memory(21.0)["keys"])


def test_a_discarded_step_leaves_no_trace() -> None:
    given = memory()
    fill(given, 10.0)
    given.discard()
    with pytest.raises(RuntimeError, match="no forward ran"):
        given.commit()
    assert torch.equal(given.read(4, 0)["values"], layer_memory(0.0)["values"])


def test_half_a_step_cannot_be_committed() -> None:
    given = memory()
    given.write(3, 0, layer_memory(1.0))
    with pytest.raises(RuntimeError, match=r"\(3, 1\), \(4, 0\), \(4, 1\)"):
        given.commit()


def test_what_tensors_gives_replaces_the_memory_of_another() -> None:
    given = memory()
    fill(given, 10.0)
    given.commit()
    saved = list(given.tensors())
    assert sorted((layer, micro_batch, field) for layer, micro_batch, field, _ in saved) == [
        *((3, i, field) for i in range(2) for field in ("keys", "state", "values")),
        *((4, i, field) for i in range(2) for field in ("keys", "values")),
    ]
    other = memory()
    fill(other, 99.0)  # pending: forgotten
    other.replace((*place, value.double().view(-1)) for *place, value in saved)
    found = {tuple(place): value for *place, value in other.tensors()}
    assert all(torch.equal(found[layer, i, field], value) for layer, i, field, value in saved)
    with pytest.raises(RuntimeError, match="no forward ran"):
        other.commit()


def test_replacing_one_micro_batch_leaves_the_others() -> None:
    blank = layer_memory(0.0)
    given = StreamMemory({3: blank}, micro_batches=2)  # one tensor for both
    given.replace([(3, 1, "state", torch.ones_like(blank["state"]))])
    assert torch.equal(given.read(3, 0)["state"], torch.zeros_like(blank["state"]))
    assert torch.equal(given.read(3, 1)["state"], torch.ones_like(blank["state"]))
