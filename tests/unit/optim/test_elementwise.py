"""A kind that says only what it remembers and how an element moves."""

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch

from brt_dist.config.schema import ModelConfig
from brt_dist.model.model import BlockRecurrentModel
from brt_dist.model.parameters import logical_parameters
from brt_dist.optim.base import Sharding
from brt_dist.optim.elementwise import Elementwise
from brt_dist.optim.groups import set_learning_rate
from brt_dist.parallel.layout import MegatronGroups, single_process


class Momentum(Elementwise):
    """Gradient descent with momentum, as torch's SGD has it."""

    name: Literal["momentum"] = "momentum"
    state_names: ClassVar[tuple[str, ...]] = ("velocity",)

    def update(
        self, weight: torch.Tensor, gradient: torch.Tensor, state: Mapping[str, torch.Tensor], rate: float, decay: float
    ) -> None:
        """weight -= rate * velocity."""
        gradient = gradient.add(weight, alpha=decay) if decay else gradient
        weight.sub_(state["velocity"].mul_(0.9).add_(gradient), alpha=rate)


def test_it_steps_every_parameter_and_the_weights_of_linear_maps_decay() -> None:
    small = ModelConfig(layers=2, width=32, heads=2, head_dim=16, mlp_width=64, window=16, states=8, vocab_size=101)
    with single_process():
        sharding = Sharding(
            tensor=1, tensor_rank=0, is_flat=False, shards=1, shard=0,
            group=MegatronGroups.get_tensor_model_parallel_group(),
        )  # fmt: skip
        held = list(logical_parameters(BlockRecurrentModel(small, 0)))
        found = Momentum(learning_rate=1.0, weight_decay=0.1).build(held, sharding)
        copies = {p.name: p.local.detach().clone().requires_grad_() for p in held}
        decayed = [copies[p.name] for p in held if p.initializer.kind == "fan_in"]
        others = [copies[p.name] for p in held if p.initializer.kind != "fan_in"]
        assert decayed and others
        groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
        expected = torch.optim.SGD(groups, lr=1.0, momentum=0.9)
        random = torch.Generator().manual_seed(0)
        for rate in (0.1, 0.2, 0.05):
            for p in held:
                p.local.grad = torch.randn(p.local.shape, generator=random)
                copies[p.name].grad = p.local.grad.clone()
            for optimizer in (found, expected):
                set_learning_rate(optimizer, rate)
                optimizer.step()
        for p in held:
            torch.testing.assert_close(p.local, copies[p.name], rtol=0, atol=1e-6)
            assert set(found.state[p.local]) == {"step", "velocity"} and found.state[p.local]["step"] == 3
