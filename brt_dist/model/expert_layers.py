"""The two halves of a MoEUT layer; see `ffn/sigma_moe.py` and `mixers/switchhead.py`.

Experts are stored as rows of one matrix, so that a tensor parallel rank holds a contiguous part: of SigmaMoE a part of
the units of every expert, of SwitchHead the experts of its heads.
"""

import math
from typing import TYPE_CHECKING

import torch
from megatron.core import ModelParallelConfig
from megatron.core.tensor_parallel import reduce_from_tensor_model_parallel_region
from torch import Tensor, nn
from torch.nn import functional

from brt_dist.config.schema import ModelConfig
from brt_dist.model.attention import attend, split_heads, with_previous_block
from brt_dist.model.dropout import Dropout
from brt_dist.model.experts import chosen_experts, each, mixed, sigma_moe
from brt_dist.model.linear import local_heads
from brt_dist.model.memory import Memory
from brt_dist.model.norms import LayerNorm
from brt_dist.model.parameters import declare, fan_in
from brt_dist.model.positions import rotated
from brt_dist.model.regions import enter, shared
from brt_dist.model.sequence import sum_to_parts

if TYPE_CHECKING:
    from brt_dist.model.ffn.sigma_moe import SigmaMoEFFN
    from brt_dist.model.mixers.switchhead import SwitchHeadMixer


class SigmaMoE(nn.Module):
    """(N, b, D) -> (N, b, D); see `ffn/base.py`.  Rows of `keys` and `values` are (unit, expert)."""

    def __init__(self, settings: "SigmaMoEFFN", model: ModelConfig, index: int, parallel: ModelParallelConfig) -> None:
        super().__init__()
        self.settings, self.index, self._parallel = settings, index, parallel
        experts, width = settings.experts, model.width
        variance = 2 / model.depth
        rows = settings.expert_width // parallel.tensor_model_parallel_size * experts
        self.norm = LayerNorm(width)
        self.router = nn.Parameter(torch.empty(experts, width))
        declare(self.router, fan_in(variance))
        self.keys = nn.Parameter(torch.empty(rows, width))
        declare(self.keys, fan_in(variance), 0, stacked=(experts, 1))
        self.values = nn.Parameter(torch.empty(rows, width))
        outward = fan_in(variance * width / (experts * settings.expert_width))  # inputs are the rows here
        declare(self.values, outward, 0, stacked=(experts, 1))

    def forward(self, x: Tensor, dropout: Dropout | None) -> Tensor:
        logits = functional.linear(enter(self.norm(x), self._parallel), shared(self.router, self._parallel))
        keys, values = (rows.unflatten(0, (-1, self.settings.experts)) for rows in (self.keys, self.values))
        y = sigma_moe(
            enter(x, self._parallel), logits, keys.permute(1, 2, 0), values.transpose(0, 1), self.settings.chosen
        )
        if dropout is not None:  # every rank has the whole regulariser, and the region adds up their gradients
            weight = self.settings.entropy / self._parallel.tensor_model_parallel_size
            y = dropout.routing.regularised(y, f"{self.index}.ffn", logits, weight)
        y = left(y, self._parallel)
        return y if dropout is None else dropout.activations(y, self.index, "mlp output")


class SwitchHead(nn.Module):
    """See `mixers/base.py`.  Rows: `projections` (head, [query, key], E), experts (head, expert, E)."""

    def __init__(
        self, settings: "SwitchHeadMixer", model: ModelConfig, index: int, parallel: ModelParallelConfig
    ) -> None:
        super().__init__()
        self.settings, self.model, self.index, self._parallel = settings, model, index, parallel
        heads, size, experts, width = local_heads(model), model.head_dim, settings.experts, model.width
        variance = 2 / model.depth
        inward, outward = fan_in(variance), fan_in(variance * width / (model.heads * size))
        self.norm = LayerNorm(width)
        self.projections = nn.Parameter(torch.empty(2 * heads * size, width))
        declare(self.projections, inward, 0, stacked=(2, size))
        if experts > 1:
            self.value_router = nn.Parameter(torch.empty(heads * experts, width))
            declare(self.value_router, inward, 0, stacked=(experts, 1))
        self.output_router = nn.Parameter(torch.empty(heads * experts, width))
        declare(self.output_router, inward, 0, stacked=(experts, 1))
        self.values = nn.Parameter(torch.empty(heads * experts * size, width))
        declare(self.values, inward, 0, stacked=(experts, size))
        self.outputs = nn.Parameter(torch.empty(heads * experts * size, width))
        declare(self.outputs, outward, 0, stacked=(experts, size))

    def forward(
        self, x: Tensor, memory: Memory, starts: Tensor, dropout: Dropout | None = None, fed_back: None = None
    ) -> tuple[Tensor, Memory]:
        normed, x = enter(self.norm(x), self._parallel), enter(x, self._parallel)
        size, window = self.model.head_dim, self.model.window
        scale = size**-0.25
        projected = functional.linear(normed, self.projections).unflatten(0, (-1, window)) * scale
        queries, keys = split_heads(projected, 2, size)
        values, value_logits = self._values(x, normed)
        values = values.unflatten(0, (-1, window)).permute(2, 0, 3, 1, 4)  # (b, t, h, W, E)
        seen = [with_previous_block(new, memory[name], starts) for name, new in (("keys", keys), ("values", values))]
        attended = attend(self._turned(queries, window), self._turned(seen[0], 0), seen[1], self._hidden(starts, x))
        y, output_logits = self._outputs(attended.permute(1, 3, 0, 2, 4).flatten(0, 1), normed)
        if dropout is not None and self.settings.experts > 1:
            weight = self.settings.entropy * local_heads(self.model) / self.model.heads  # means over this rank's heads
            for name, logits in (("values", value_logits), ("outputs", output_logits)):
                y = dropout.routing.regularised(y, f"{self.index}.{name}", logits, weight)
        y = left(y, self._parallel)
        if dropout is not None:
            y = dropout.activations(y, self.index, "attention output")
        return y, {"keys": keys[:, -1].transpose(1, 2), "values": values[:, -1].transpose(1, 2)}

    def _values(self, x: Tensor, normed: Tensor) -> tuple[Tensor, Tensor]:
        """Values (N, b, h, E) of hidden states x, and the logits of their router (N, b, h, experts)."""
        size, experts = self.model.head_dim, self.settings.experts
        if experts == 1:
            return functional.linear(x, self.values).unflatten(-1, (-1, size)), x
        logits = functional.linear(normed, self.value_router).unflatten(-1, (-1, experts))
        scores, index = self._chosen(logits)
        made = mixed(x.flatten(0, 1), index, self.values.unflatten(0, (-1, size)).transpose(1, 2))
        weighted = made.view(*scores.shape, size) * scores.to(made.dtype).unsqueeze(-1)
        return weighted.sum(-2), logits

    def _outputs(self, attended: Tensor, normed: Tensor) -> tuple[Tensor, Tensor]:
        """This rank's part of the result (N, b, D) from what heads read (N, b, h, E), and the logits of the router."""
        size, experts = self.model.head_dim, self.settings.experts
        logits = functional.linear(normed, self.output_router).unflatten(-1, (-1, experts))
        if experts == 1:
            return (attended * torch.sigmoid(logits)).flatten(2) @ self.outputs, logits
        scores, index = self._chosen(logits)
        used = (attended.unsqueeze(-2) * scores.to(attended.dtype).unsqueeze(-1)).flatten(2, 3)
        made = each(used.flatten(0, 1), index, self.outputs.unflatten(0, (-1, size)))
        return made.sum(1).view(*attended.shape[:2], -1), logits

    def _chosen(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Scores (N, b, h, k), and experts (N*b, h*k) numbered through all heads of this rank."""
        scores, index = chosen_experts(logits, self.settings.chosen)
        heads = torch.arange(logits.shape[2], device=logits.device).unsqueeze(-1)
        return scores, (index + heads * self.settings.experts).flatten(2).flatten(0, 1)

    def _turned(self, x: Tensor, first: int) -> Tensor:
        """Rotate the first half of each head, of an even number of channels."""
        half = x.shape[-1] // 2
        half -= half % 2
        return torch.cat([rotated(x[..., :half], first), x[..., half:]], -1) if half else x

    def _hidden(self, starts: Tensor, like: Tensor) -> Tensor:
        """-inf (b, t, 1, W, 2W) for what a token does not see: other documents, later tokens, and beyond W tokens."""
        window = self.model.window
        place = torch.arange(window, device=like.device)
        distance = window + place[:, None] - torch.arange(2 * window, device=like.device)
        visible = (distance >= 0) & (distance < window)
        before = torch.arange(2 * window, device=like.device) < window
        visible = visible & ~(starts[:, :, None, None, None] & before)
        dtype = torch.promote_types(like.dtype, torch.float32)
        return torch.zeros(visible.shape, dtype=dtype, device=like.device).masked_fill(~visible, -math.inf)


def left(part: Tensor, parallel: ModelParallelConfig) -> Tensor:
    """Leave a region: the sum of what all ranks have (N, ...); under sequence parallel of this rank's tokens."""
    return sum_to_parts(part) if parallel.sequence_parallel else reduce_from_tensor_model_parallel_region(part)
