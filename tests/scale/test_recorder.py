"""The recorder sees what it should; every budget in this folder depends on it."""

import pytest
import torch
import torch.distributed as dist

from tests.scale.accelerator import Event
from tests.scale.recorder import Collective
from tests.scale.settings import small
from tests.scale.world import fake_world


def test_collectives_are_named_by_operation_group_type_and_size() -> None:
    from megatron.core import parallel_state

    config = small({"tensor": 2, "pipeline": 2, "data": 4})
    with fake_world(config, rank=11) as world, world.recorder() as recorder:
        values = torch.ones(8)
        dist.all_reduce(values.bfloat16(), group=parallel_state.get_data_parallel_group(), async_op=True).wait()
        with recorder.phase("update"):
            half = torch.empty(4)
            dist.reduce_scatter_single(half, values, group=parallel_state.get_tensor_model_parallel_group())
            dist.all_gather([torch.empty(8) for _ in range(2)], values, group=dist.new_group([3, 11]))
        dist.broadcast(values, 0)
        dist.barrier()
    bf16, fp32 = torch.bfloat16, torch.float32
    assert recorder.collectives[:4] == [
        Collective("", "all_reduce", "data", 4, bf16, 16, (8,), True),
        Collective("update", "reduce_scatter", "tensor", 2, fp32, 32, (8,), False),
        Collective("update", "all_gather", "pipe", 2, fp32, 64, (8,), False),
        Collective("", "broadcast", "world", 16, fp32, 32, (8,), False),
    ]
    assert recorder.collectives[4].op == "barrier" and len(recorder.collectives) == 5
    assert [one.wire_bytes for one in recorder.collectives] == [24, 16, 32, 32, 0]


@pytest.mark.parametrize(
    "read",
    [
        lambda t: t[0].item(), lambda t: float(t[0]), lambda t: bool(t[0] > 0), lambda t: int(t[0]),
        lambda t: t.tolist(), lambda t: t.cpu(), lambda t: t.numpy(), lambda t: t[t > 0],
        lambda t: torch.equal(t, t + 1), torch.nonzero,
    ],
)  # fmt: skip
def test_every_way_to_read_a_value_on_the_host_is_seen_once(read: object) -> None:
    with fake_world(small()) as world, world.recorder() as recorder:
        read(torch.ones(3))  # type: ignore[operator]
    assert len(recorder.host_reads) == 1


def test_synchronizations_are_seen_and_so_are_events() -> None:
    from deepspeed.accelerator import get_accelerator

    with fake_world(small()) as world, world.recorder() as recorder:
        get_accelerator().synchronize()
        torch.cuda.synchronize()
        get_accelerator().Event().synchronize()
        assert Event.made == 1
    assert len(recorder.synchronizations) == 3


def test_a_world_of_4096_ranks_has_the_groups_of_the_layout() -> None:
    config = small({"tensor": 8, "pipeline": 8, "data": 64}, layers=8)
    with fake_world(config, rank=4095) as world:
        assert (world.layout.tensor_rank, world.layout.data_rank, world.layout.stage) == (7, 63, 7)
        assert {len(group.ranks) for group in world.groups if group.is_member} >= {8, 64}
