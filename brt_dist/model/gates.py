"""Gates of the recurrent cell: how the new content z enters the state (arXiv 2203.07852, section 3.1)."""

from collections.abc import Callable

import torch
from megatron.core import ModelParallelConfig
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from brt_dist.model.linear import RowLinear
from brt_dist.model.norms import widened
from brt_dist.model.parameters import declare, fan_in, normal

_STD = 0.1  # small, but large enough for Adafactor's steps, which are relative to the parameter's size
_KERNEL_VARIANCE = 0.1


class FixedGate(nn.Module):
    """state*g + z*(1 - g) with g = sigmoid(bias): a learned exponential moving average per channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.empty(width))
        declare(self.bias, normal(_STD))

    def forward(self, state: Tensor, z: Tensor, h: Tensor) -> Tensor:
        """New state (S, b, D) in the type of `state`; `h` is not looked at."""
        gate = torch.sigmoid(widened(self.bias))
        return torch.lerp(widened(z), widened(state), gate).to(state.dtype)

    def watch(self, tell: Callable[[Tensor], None]) -> RemovableHandle:
        """Report the share of the state that is kept, by channel, whenever the gate is used."""
        return self.register_forward_pre_hook(lambda *_: tell(torch.sigmoid(widened(self.bias.detach()))))


class LSTMGate(nn.Module):
    """state*f + z*i with f = sigmoid(h Wf + bf + 1), i = sigmoid(h Wi + bi - 1).

    h is what z was made of.  The offsets make a new cell keep its state.  Input and forget kernels are one layer, in
    this order along its outputs; they see this rank's part of h, so their sums need one reduction.
    """

    def __init__(self, inputs: int, width: int, parallel: ModelParallelConfig) -> None:
        super().__init__()
        self.kernels = RowLinear(inputs, 2 * width, parallel, fan_in(_KERNEL_VARIANCE), stacked=(2, width))
        self.input_bias = nn.Parameter(torch.empty(width))
        self.forget_bias = nn.Parameter(torch.empty(width))
        declare(self.input_bias, normal(_STD))
        declare(self.forget_bias, normal(_STD))

    def forward(self, state: Tensor, z: Tensor, h: Tensor) -> Tensor:
        """New state (S, b, D) in the type of `state`, from `h` (S, b, inputs/tp)."""
        into, keep = widened(self.kernels(h)).chunk(2, -1)
        into = torch.sigmoid(into + widened(self.input_bias) - 1)
        keep = torch.sigmoid(keep + widened(self.forget_bias) + 1)
        return (state * keep + z * into).to(state.dtype)

    def watch(self, tell: Callable[[Tensor], None]) -> RemovableHandle:
        """Report the share of the state that is kept, (S, b, D), whenever the gate is used."""

        def told(kernels: nn.Module, given: object, output: Tensor) -> None:
            keep = widened(output.detach()).chunk(2, -1)[1]
            tell(torch.sigmoid(keep + widened(self.forget_bias.detach()) + 1))

        return self.kernels.register_forward_hook(told)


class GatedUpdate(nn.Module):
    """z = h W (tanh of it, if asked), then the gate: the horizontal counterpart of a residual connection."""

    def __init__(self, inputs: int, width: int, gate: str, parallel: ModelParallelConfig, tanh: bool = False) -> None:
        super().__init__()
        self.output = RowLinear(inputs, width, parallel)
        self.gate = FixedGate(width) if gate == "fixed" else LSTMGate(inputs, width, parallel)
        self.tanh = tanh

    def forward(self, state: Tensor, h: Tensor) -> Tensor:
        """New state (S, b, D) from `state` and `h` (S, b, inputs/tp)."""
        z = widened(self.output(h))
        return self.gate(state, torch.tanh(z) if self.tanh else z, h)
