"""All ranks use one kind of device: decided once, said, and refused where nodes differ."""

import threading
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from brt_dist.errors import PlatformError
from brt_dist.parallel.device_choice import NodeDevices, agree_on_device, device_for_all


def nodes(*gpus: int, ranks: int = 8) -> list[NodeDevices]:
    return [NodeDevices(f"node{index}", ranks, count) for index, count in enumerate(gpus)]


@pytest.mark.parametrize(
    ("gpus", "needed", "kind", "reason"),
    [
        ((8, 8), 2, "cuda", "a GPU for each rank, 8 per node"),
        ((8, 0, 8), 2, "cuda", "a GPU for each rank, 8 per node"),  # a third node is not needed
        ((0, 0), 2, "cpu", "no node has a GPU"),
        ((4, 0), 2, "cpu", "no node has more than 4 GPUs for its 8 ranks"),
    ],
)
def test_auto_takes_gpus_only_if_every_rank_gets_one(gpus: Sequence[int], needed: int, kind: str, reason: str) -> None:
    found = device_for_all("auto", nodes(*gpus), needed)
    assert (found.kind, found.reason) == (kind, reason)


def test_nodes_that_disagree_are_named() -> None:
    with pytest.raises(PlatformError) as caught:
        device_for_all("auto", nodes(8, 0, 8, 4))
    assert "With a GPU for each rank: node0, node2." in str(caught.value)
    assert "Without: node1 (0 GPUs, 8 ranks), node3 (4 GPUs, 8 ranks)." in str(caught.value)


def test_of_many_nodes_some_are_named_and_the_others_counted() -> None:
    with pytest.raises(PlatformError, match=r"node7 and 503 more\.  Without: node511 \(0 GPUs, 8 ranks\)"):
        device_for_all("auto", nodes(*[8] * 511, 0))


def test_gpus_that_are_asked_for_and_missing_are_an_error() -> None:
    with pytest.raises(PlatformError, match=r"not enough GPUs for the ranks of node1 \(4 GPUs, 8 ranks\)"):
        device_for_all("cuda", nodes(8, 4))
    assert device_for_all("cuda", nodes(8, 8)).kind == "cuda"
    assert device_for_all("cpu", nodes(8, 8)).kind == "cpu"


@pytest.mark.parametrize(
    ("with_gpus", "said"),
    [
        ((), "device: cpu, no node has a GPU"),
        ((0, 1, 2), "device: cuda, a GPU for each rank, 1 per node"),
        ((0, 2), "the nodes disagree.  With a GPU for each rank: host0, host2.  Without: host1 (0 GPUs, 1 ranks)."),
    ],
)
def test_ranks_without_a_launcher_agree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_gpus: Sequence[int], said: str
) -> None:
    """Each rank is on a node of its own and sees a GPU or none; all come to the same choice or message."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr("socket.gethostname", lambda: threading.current_thread().name)
    found: dict[int, str] = {}

    def rank(number: int) -> None:
        store = dist.FileStore(str(tmp_path / "store"), 3)
        store.set_timeout(timedelta(seconds=30))
        try:
            found[number] = str(agree_on_device("auto", number, 3, 0 if number in with_gpus else 1, store))
        except PlatformError as error:
            found[number] = str(error)

    ranks = [threading.Thread(target=rank, args=(number,), name=f"host{number}") for number in range(3)]
    for each in ranks:
        each.start()
    for each in ranks:
        each.join()
    assert len(found) == 3 and len(set(found.values())) == 1
    assert said in found[0]
