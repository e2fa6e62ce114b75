"""Linear maps split over the tensor parallel ranks: Megatron's, without biases.

Weights are (outputs, inputs).  Several maps of one input are one layer here, with the head as the slowest index of
the split dimension, so that a rank's contiguous part is whole heads, one product serves all of them, and the
backward pass reduces the gradient of their common input once.
"""

from typing import Any

import torch
import torch.distributed as dist
from megatron.core import ModelParallelConfig, parallel_state
from megatron.core.tensor_parallel import layers as megatron
from torch import Tensor
from torch.nn import functional

from brt_dist.config.schema import ModelConfig
from brt_dist.model.parameters import Initializer, declare, fan_in
from brt_dist.model.sequence import linear_of_parts, sum_to_parts


def megatron_config(sequence_parallel: bool = False) -> ModelParallelConfig:
    """Megatron's settings for the layers of this rank, under the process groups that exist."""
    ranks = parallel_state.get_tensor_model_parallel_world_size()
    return ModelParallelConfig(
        tensor_model_parallel_size=ranks,
        sequence_parallel=sequence_parallel and ranks > 1,
        perform_initialization=False,  # we initialise by name: `parameters.initialize`
        use_cpu_initialization=True,  # this means torch's default device; the other branch insists on CUDA
        gradient_accumulation_fusion=False,
    )


def no_initialization(weight: Tensor) -> None:
    """Passed to Megatron where it wants an initialiser that it will not call."""


class ColumnLinear(megatron.ColumnParallelLinear):
    """(..., inputs) whole on every rank -> (..., outputs/tp), this rank's part of the outputs.

    Under sequence parallel the input is this rank's positions (n/tp, ..., inputs); the output has all n.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        parallel: ModelParallelConfig,
        initializer: Initializer | None = None,
        stacked: tuple[int, int] = (1, 1),
    ) -> None:
        super().__init__(
            inputs,
            outputs,
            config=parallel,
            init_method=no_initialization,
            bias=False,
            tp_group=parallel_state.get_tensor_model_parallel_group(),
        )
        declare(self.weight, initializer or fan_in(), partition_dim=0, stacked=stacked)

    def forward(self, x: Tensor) -> Tensor:
        if self.sequence_parallel:
            return linear_of_parts(x, self.weight)
        return super().forward(x)[0]


class RowLinear(megatron.RowParallelLinear):
    """(..., inputs/tp), this rank's part of the inputs -> (..., outputs), summed over the ranks.

    Under sequence parallel the input has all n positions (n, ..., inputs/tp), the output this rank's (n/tp, ...).
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        parallel: ModelParallelConfig,
        initializer: Initializer | None = None,
        stacked: tuple[int, int] = (1, 1),
    ) -> None:
        super().__init__(
            inputs,
            outputs,
            config=parallel,
            init_method=no_initialization,
            bias=False,
            input_is_parallel=True,
            skip_bias_add=False,
            tp_group=parallel_state.get_tensor_model_parallel_group(),
        )
        declare(self.weight, initializer or fan_in(), partition_dim=1, stacked=stacked)

    def forward(self, x: Tensor) -> Tensor:
        if self.sequence_parallel:
            return sum_to_parts(functional.linear(x, self.weight))
        return super().forward(x)[0]


def local_heads(config: ModelConfig) -> int:
    """Heads of this tensor parallel rank."""
    return config.heads // parallel_state.get_tensor_model_parallel_world_size()


def gather(x: Tensor) -> Tensor:
    """(..., n/tp) of each rank -> (..., n) on every rank; for consumers whose gradient every rank holds in full."""
    return x if parallel_state.get_tensor_model_parallel_world_size() == 1 else _Gather.apply(x)


class _Gather(torch.autograd.Function):
    """Megatron's function of this kind allocates on the current CUDA device; this one works on any."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        group = parallel_state.get_tensor_model_parallel_group()
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(group.size())]
        dist.all_gather(parts, x.contiguous(), group)
        return torch.cat(parts, -1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        group = parallel_state.get_tensor_model_parallel_group()
        return gradient.chunk(group.size(), -1)[group.rank()].contiguous()
