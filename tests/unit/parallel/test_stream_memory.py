"""Two slots: what a forward reads stays as the last finished step left it, wherever the slots are kept."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from brt_dist.model.memory import Memory
from brt_dist.parallel.device import Device
from brt_dist.parallel.memory_place import MemoryPlace, OnDevice, OnHost
from brt_dist.parallel.stream_memory import ForwardMemory, StreamMemory

PLACES: dict[str, Callable[[], MemoryPlace]] = {
    "device": OnDevice,
    "host": lambda: OnHost(Device("cpu", 0).transfers()),
}


def layer_memory(value: float, state: bool = True) -> Memory:
    cache = torch.full((2, 4, 1, 3), value)
    memory = {"keys": cache, "values": cache + 1}
    return {"state": torch.full((2, 5, 6), value), **memory} if state else memory


@pytest.fixture(params=PLACES)
def place(request: Any) -> MemoryPlace:
    return PLACES[request.param]()


def memory(place: MemoryPlace, kind: type[StreamMemory] = StreamMemory) -> Any:
    return kind({3: layer_memory(0.0), 4: layer_memory(0.0, state=False)}, 2, place)


def fill(given: StreamMemory, value: float) -> None:
    for micro_batch in range(2):
        given.write(3, micro_batch, layer_memory(value + micro_batch))
        given.write(4, micro_batch, layer_memory(value + micro_batch, state=False))


def test_reads_committed_until_the_commit(place: MemoryPlace) -> None:
    given = memory(place)
    fill(given, 10.0)
    assert torch.equal(given.read(3, 1)["keys"], layer_memory(0.0)["keys"])
    fill(given, 20.0)  # a forward that runs twice
    given.commit()
    assert torch.equal(given.read(3, 1)["keys"], layer_memory(21.0)["keys"])


def test_a_discarded_step_leaves_no_trace(place: MemoryPlace) -> None:
    given = memory(place)
    fill(given, 10.0)
    given.discard()
    with pytest.raises(RuntimeError, match="no forward ran"):
        given.commit()
    assert torch.equal(given.read(4, 0)["values"], layer_memory(0.0)["values"])


def test_half_a_step_cannot_be_committed(place: MemoryPlace) -> None:
    given = memory(place)
    given.write(3, 0, layer_memory(1.0))
    with pytest.raises(RuntimeError, match=r"\(3, 1\), \(4, 0\), \(4, 1\)"):
        given.commit()


def test_what_tensors_gives_replaces_the_memory_of_another(place: MemoryPlace) -> None:
    given = memory(place)
    fill(given, 10.0)
    given.commit()
    saved = list(given.tensors())
    assert sorted((layer, micro_batch, field) for layer, micro_batch, field, _ in saved) == [
        *((3, i, field) for i in range(2) for field in ("keys", "state", "values")),
        *((4, i, field) for i in range(2) for field in ("keys", "values")),
    ]
    other = memory(place)
    fill(other, 99.0)  # pending: forgotten
    other.replace((*place, value.double().view(-1)) for *place, value in saved)
    found = {tuple(place): value for *place, value in other.tensors()}
    assert all(torch.equal(found[layer, i, field], value) for layer, i, field, value in saved)
    with pytest.raises(RuntimeError, match="no forward ran"):
        other.commit()


def test_replacing_one_micro_batch_leaves_the_others(place: MemoryPlace) -> None:
    blank = layer_memory(0.0)
    given = StreamMemory({3: blank}, 2, place)  # one tensor for both
    given.replace([(3, 1, "state", torch.ones_like(blank["state"]))])
    assert torch.equal(given.read(3, 0)["state"], torch.zeros_like(blank["state"]))
    assert torch.equal(given.read(3, 1)["state"], torch.ones_like(blank["state"]))


def test_a_forward_that_runs_again_reads_what_the_first_read(place: MemoryPlace) -> None:
    given = memory(place)
    for step in range(1, 4):
        given.prefetch(0)
        for micro_batch in range(2):
            given.prefetch(micro_batch + 1)
            reads = []
            for _ in range(2):
                reads.append(given.read(3, micro_batch)["keys"])
                given.write(3, micro_batch, layer_memory(10.0 * step + micro_batch))
                given.write(4, micro_batch, layer_memory(10.0 * step + micro_batch, state=False))
            expected = 10.0 * (step - 1) + micro_batch if step > 1 else 0.0
            assert [float(keys.unique()) for keys in reads] == [expected, expected]
        given.commit()


def test_memory_for_evaluation_reads_what_it_wrote_and_leaves_that_of_training(place: MemoryPlace) -> None:
    training = memory(place)
    fill(training, 10.0)
    training.commit()
    evaluation = memory(place, ForwardMemory)
    for step in range(3):
        for micro_batch in range(2):
            evaluation.prefetch(micro_batch)
            before = 100.0 * step + micro_batch if step else 0.0
            assert float(evaluation.read(4, micro_batch)["keys"].unique()) == before
        fill(evaluation, 100.0 * (step + 1))
        evaluation.commit()
    evaluation.close()
    assert float(training.read(3, 1)["keys"].unique()) == 11.0
    fill(training, 20.0)
    training.commit()
    assert float(training.read(3, 1)["keys"].unique()) == 21.0


def test_host_memory_has_two_buffers_for_each_tensor_evaluation_included() -> None:
    transfers = Device("cpu", 0).transfers()
    made: list[torch.Tensor] = []

    def count(like: torch.Tensor) -> torch.Tensor:
        made.append(torch.empty_like(like))
        return made[-1]

    transfers.host_buffer = count  # type: ignore[method-assign]
    place = OnHost(transfers)
    training = memory(place)
    one_slot = 2 * (3 + 2)  # micro-batches, fields of both layers
    for step in range(4):
        fill(training, float(step))
        if step == 2:
            training.discard()
        else:
            training.commit()
        evaluation = memory(place, ForwardMemory)
        fill(evaluation, 50.0)
        fill(evaluation, 60.0)
        evaluation.close()
        training.replace(list(training.tensors()))
        assert len(made) == 2 * one_slot
