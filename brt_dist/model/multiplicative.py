"""The multiplicative layer of Scaling Transformers (arXiv 2111.12763): one matrix made from two small ones.

Output m of module s is sum_i x_i D[s, i] E[m, i].  The modules are the heads here, and each kind of projection has its
own D and E, so the weights are kinds*(H + E) vectors instead of kinds*H*E.  It can represent any permutation of its
inputs: D selects the module, E the place in it.
"""

import torch
from megatron.core import ModelParallelConfig
from torch import Tensor, nn

from brt_dist.model.parameters import declare, fan_in, normal
from brt_dist.model.regions import enter, shared

MODULE_STD = 0.5  # as in trax


class MultiplicativeLinear(nn.Module):
    """Several projections of one input to heads, instead of a `ColumnLinear` with rows (head, kind, E).

    Each call makes the whole matrix from D and E, so beyond a few tokens it costs as much as a dense one.

    Args:
        inputs: width of the input.
        heads: of all ranks.
        kinds: projections for each head.
        head_dim: outputs of each.
    """

    def __init__(self, inputs: int, heads: int, kinds: int, head_dim: int, parallel: ModelParallelConfig) -> None:
        super().__init__()
        self._parallel = parallel
        self.modules_of_heads = nn.Parameter(torch.empty(heads // parallel.tensor_model_parallel_size * kinds, inputs))
        declare(self.modules_of_heads, normal(MODULE_STD), 0, stacked=(kinds, 1))
        self.places = nn.Parameter(torch.empty(kinds * head_dim, inputs))
        # of variance 4/inputs: the product with D has the variance of a dense layer
        declare(self.places, fan_in(1 / MODULE_STD**2), stacked=(kinds, head_dim))
        self._kinds = kinds

    def forward(self, x: Tensor) -> Tensor:
        """As `ColumnLinear`."""
        places = shared(self.places, self._parallel)
        heads = self.modules_of_heads.unflatten(0, (-1, self._kinds, 1))
        weight = (heads * places.unflatten(0, (self._kinds, -1))).flatten(0, 2)
        return nn.functional.linear(enter(x, self._parallel), weight)
