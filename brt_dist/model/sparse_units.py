"""The module of the sparse FFN; see `ffn/sparse.py`.

W1 and W2 are both kept with one row for each hidden unit, block by block, so that the weights of a unit are contiguous:
decoding reads rows, and a tensor parallel rank holds whole blocks.  All weights are the module's own, so that ZeRO-3
gathers them for either path.
"""

from typing import TYPE_CHECKING

import torch
from megatron.core import ModelParallelConfig
from megatron.core.tensor_parallel import reduce_from_tensor_model_parallel_region
from torch import Tensor, nn
from torch.nn import functional

from brt_dist.config.schema import ModelConfig
from brt_dist.model.dropout import Dropout
from brt_dist.model.norms import RMSNorm, widened
from brt_dist.model.parameters import declare, fan_in, normal
from brt_dist.model.regions import enter, shared
from brt_dist.model.sequence import sum_to_parts

if TYPE_CHECKING:
    from brt_dist.model.ffn.sparse import SparseFFN

BIAS_STD = 1e-6  # as in trax


class SparseUnits(nn.Module):
    """(N, b, D) -> (N, b, D); see `ffn/base.py`."""

    def __init__(self, settings: "SparseFFN", model: ModelConfig, index: int, parallel: ModelParallelConfig) -> None:
        super().__init__()
        width, hidden = model.width, settings.width
        local = hidden // parallel.tensor_model_parallel_size
        self.settings, self.index = settings, index
        self._parallel = parallel
        self.norm = RMSNorm(width)
        self.compress = nn.Parameter(torch.empty(settings.rank, width))
        declare(self.compress, fan_in())
        self.expand = nn.Parameter(torch.empty(local, settings.rank))
        declare(self.expand, fan_in(), 0)
        self.preference = nn.Parameter(torch.empty(local))
        declare(self.preference, normal(BIAS_STD), 0)
        self.hidden = nn.Parameter(torch.empty(local, width))
        declare(self.hidden, fan_in(), 0)
        self.output = nn.Parameter(torch.empty(local, width))
        declare(self.output, fan_in(width / hidden), 0)  # the inputs are the rows here: variance 1/hidden
        self.bias = nn.Parameter(torch.empty(width))
        declare(self.bias, normal(BIAS_STD))

    def forward(self, x: Tensor, dropout: Dropout | None) -> Tensor:
        x = enter(self.norm(x), self._parallel)
        logits = self.controlled(x)
        tokens = logits.shape[:-2].numel()
        if not torch.is_grad_enabled() and tokens < self.settings.block_size:
            y = self.gathered(x, logits.argmax(-1))
        else:
            y = self.masked(x, self.mask(logits, dropout))
        return y if dropout is None else dropout.activations(y, self.index, "mlp output")

    def controlled(self, x: Tensor) -> Tensor:
        """The controller's logits (N, b, blocks of this rank, block size) in float32, for all tokens, normalised."""
        compressed = functional.linear(x, shared(self.compress, self._parallel))
        logits = functional.linear(compressed, self.expand) + self.preference
        return widened(logits).unflatten(-1, (-1, self.settings.block_size))

    def mask(self, logits: Tensor, dropout: Dropout | None) -> Tensor:
        """Factors on the hidden units, of the shape of `logits`; without dropout's keys the choice itself."""
        soft = logits.softmax(-1)
        if dropout is None:
            return straight_through(logits, soft)
        uniform = dropout.uniform(logits.flatten(-2), self.index, "sparse noise").view_as(logits)
        gumbel = -(-uniform.clamp(1e-6, 1 - 1e-6).log()).log()
        hard = straight_through(logits + self.settings.noise * gumbel, soft)
        chosen = dropout.uniform_by_stream(logits.device, self.index, "sparse choice") < self.settings.hard_share
        return torch.where(chosen[:, None, None], hard, soft)

    def masked(self, x: Tensor, mask: Tensor) -> Tensor:
        """Whole products, with `mask` (N, b, blocks, block size) on the hidden units."""
        hidden = torch.relu(functional.linear(x, self.hidden)) * mask.flatten(-2).to(x.dtype)
        return self._left(hidden @ self.output)

    def gathered(self, x: Tensor, choice: Tensor) -> Tensor:
        """Products with the weights of the units in `choice` (N, b, blocks) only."""
        blocks, size = choice.shape[-1], self.settings.block_size
        rows = (choice + torch.arange(blocks, device=choice.device) * size).flatten(0, -2)  # (tokens, blocks)
        hidden = torch.relu(self.hidden[rows] @ x.flatten(0, -2).unsqueeze(-1))
        read = hidden.transpose(-1, -2) @ self.output[rows]
        return self._left(read.view(*choice.shape[:-1], -1))

    def _left(self, part: Tensor) -> Tensor:
        """The sum of all ranks' outputs, for this rank's tokens."""
        splits = self._parallel.sequence_parallel
        return (sum_to_parts(part) if splits else reduce_from_tensor_model_parallel_region(part)) + self.bias


def straight_through(logits: Tensor, soft: Tensor) -> Tensor:
    """1 for the largest of `logits` in the last dimension and 0 for the others, with the gradient of `soft`."""
    hard = torch.zeros_like(soft).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
    return hard + (soft - soft.detach())
