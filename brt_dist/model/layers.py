"""One layer: the vertical direction (tokens), and in a recurrent layer the horizontal one beside it.

A layer is pure: `layer(x, memory, starts, dropout) -> (x, memory)`.  It keeps nothing between calls, so it may run
twice (recompute) or for other streams (evaluation).  Hidden states are sequence first, (N, b, D), as Megatron's.
The memory that comes out has its gradient: given to the next call, both calls together are one call on all tokens.
"""

from typing import NamedTuple, cast

import torch
from megatron.core import ModelParallelConfig
from torch import Tensor, nn

from brt_dist.config.schema import ModelConfig
from brt_dist.errors import ConfigError
from brt_dist.model.attention import Window, attend, merge_heads, split_heads, with_previous_block
from brt_dist.model.cell import Entered, RecurrentCell, state_starts
from brt_dist.model.dropout import Dropout
from brt_dist.model.linear import ColumnLinear, RowLinear, local_heads, megatron_config
from brt_dist.model.memory import LayerMemory
from brt_dist.model.norms import RMSNorm, unit_length
from brt_dist.model.positions import RelativeBias, banded, rotated
from brt_dist.model.scales import HeadScale


def build_layer(config: ModelConfig, index: int, parallel: ModelParallelConfig | None = None) -> "TransformerLayer":
    """Layer `index` (from 0) of the network `config`, recurrent or not; values are not set yet.

    Raises:
        ConfigError: a kind of network that does not exist, or heads or MLP that cannot be split.
    """
    if config.feedback and not config.recurrent_layers:
        raise ConfigError(
            "model.feedback needs a recurrent layer, whose state it feeds back; see model.recurrent_layers"
        )
    parallel = parallel or megatron_config()
    ranks = parallel.tensor_model_parallel_size
    for name, size in (("heads", config.heads), ("mlp_width", config.mlp_width)):
        if size % ranks:
            raise ConfigError(f"model.{name}={size} cannot be split over parallel.tensor={ranks} ranks")
    kind = RecurrentLayer if index in config.recurrent_indices() else TransformerLayer
    return kind(config, index, parallel, crosses=config.feedback or kind is RecurrentLayer)


class TransformerLayer(nn.Module):
    """Attention within a sliding window, then an MLP, both with plain residuals.

    Args:
        config: the network.
        index: number of this layer in the whole model, from 0; it keys the dropout masks.
        crosses: whether tokens also attend to a recurrent state: this layer's, or with feedback another one's.
    """

    def __init__(self, config: ModelConfig, index: int, parallel: ModelParallelConfig, crosses: bool) -> None:
        super().__init__()
        self.config = config
        self.parts = parallel.tensor_model_parallel_size if parallel.sequence_parallel else 1
        self.tokens = TokenAttention(config, index, parallel, crosses)
        self.mlp = MLP(config, index, parallel)

    def forward(
        self,
        x: Tensor,
        memory: LayerMemory,
        starts: Tensor,
        dropout: Dropout | None = None,
        entered: Entered | None = None,
    ) -> tuple[Tensor, LayerMemory]:
        """One segment of b streams, or with feedback one block of it.

        Args:
            x: (N, b, D), N a multiple of the window; under sequence parallel this rank's tokens (N/tp, b, D).
            memory: what the layer remembers of these streams.
            starts: (b, N/W) bool, whether a document starts with the block.
            dropout: none outside training.
            entered: with feedback, the state that entered the block: a recurrent layer's own, else the fed back one.

        Returns:
            x of the same shape, and the memory after the last token.

        Raises:
            ConfigError: shapes that do not belong together.
        """
        self._check(x, memory, starts, entered)
        heads = self.tokens.project(x, dropout)
        window = Window(
            with_previous_block(heads.keys, memory.keys, starts),
            with_previous_block(heads.values, memory.values, starts),
        )
        attended, state = self.mix(heads, window, memory, starts, dropout, entered)
        x = x + self.tokens.output(attended)
        x = x + self.mlp(x, dropout)
        return x, LayerMemory(state, heads.keys[:, -1].transpose(1, 2), heads.values[:, -1].transpose(1, 2))

    def mix(
        self,
        heads: "TokenHeads",
        window: Window,
        memory: LayerMemory,
        starts: Tensor,
        dropout: Dropout | None,
        entered: Entered | None = None,
    ) -> tuple[list[Tensor], Tensor | None]:
        """What tokens gather, (b, t, h, W, E) per kind of attention, and the state (b, S, D) if there is one."""
        attended = [self.tokens.to_tokens(heads, window, dropout)]
        if entered is not None:
            attended.append(self.tokens.to_states(heads, entered.keys.unsqueeze(1), entered.values.unsqueeze(1)))
        return attended, None

    def memory_shapes(self, streams: int) -> dict[str, tuple[int, ...]]:
        """Shapes of the fields of the memory that this layer has."""
        cache = (streams, self.config.window, local_heads(self.config), self.config.head_dim)
        return {"keys": cache, "values": cache}

    def blank_memory(self, streams: int) -> LayerMemory:
        """Memory of `streams` streams before their first document: zeros, in the type that a forward returns."""
        like, shapes = self.tokens.projections.weight, self.memory_shapes(streams)
        return LayerMemory(None, like.new_zeros(shapes["keys"]), like.new_zeros(shapes["values"]))

    def _check(self, x: Tensor, memory: LayerMemory, starts: Tensor, entered: Entered | None) -> None:
        window = self.config.window
        length = len(x) * self.parts
        if x.dim() != 3 or x.shape[2] != self.config.width or length % window or not length:
            raise ConfigError(
                f"hidden states of shape {tuple(x.shape)}: expected (segment, streams, {self.config.width}) with a "
                f"segment that is a multiple of model.window={window}"
            )
        streams = x.shape[1]
        if starts.shape != (streams, length // window) or starts.dtype != torch.bool:
            raise ConfigError(
                f"starts of shape {tuple(starts.shape)} and {starts.dtype}: expected {(streams, length // window)} "
                f"and torch.bool, one value per stream and block of {window} tokens"
            )
        for field, shape in self.memory_shapes(streams).items():
            given = getattr(memory, field)
            if given is None or given.shape != shape:
                found = "missing" if given is None else f"of shape {tuple(given.shape)}"
                raise ConfigError(f"memory.{field} is {found}: expected shape {shape}")
        if (entered is not None) != self.config.feedback or (entered is not None and starts.shape[1] != 1):
            raise ConfigError("with model.feedback, and only then, a layer runs on one block, with the state it enters")


class RecurrentLayer(TransformerLayer):
    """A layer whose tokens also attend to a recurrent state, as it was before their block.

    Only the state's own path is sequential over the blocks (:class:`RecurrentCell`); projections, attention and MLP
    of the tokens run for all blocks at once.
    """

    def __init__(self, config: ModelConfig, index: int, parallel: ModelParallelConfig, crosses: bool = True) -> None:
        super().__init__(config, index, parallel, crosses)
        self.cell = RecurrentCell(config, parallel)

    def mix(
        self,
        heads: "TokenHeads",
        window: Window,
        memory: LayerMemory,
        starts: Tensor,
        dropout: Dropout | None,
        entered: Entered | None = None,
    ) -> tuple[list[Tensor], Tensor | None]:
        attended, _ = super().mix(heads, window, memory, starts, dropout)
        scanned = self.cell(memory.state, state_starts(self.config, starts), window, entered)
        attended.append(self.tokens.to_states(heads, scanned.keys, scanned.values))
        return attended, scanned.state

    def memory_shapes(self, streams: int) -> dict[str, tuple[int, ...]]:
        states = self.config.states // self.parts
        return {"state": (streams, states, self.config.width), **super().memory_shapes(streams)}

    def blank_memory(self, streams: int) -> LayerMemory:
        memory, shape = super().blank_memory(streams), self.memory_shapes(streams)["state"]
        return memory._replace(state=memory.keys.new_zeros(shape, dtype=self.cell.state_dtype))


class TokenHeads(NamedTuple):
    """Projections of the tokens, each (b, t, h, W, E); keys and queries have the length that attention wants."""

    keys: Tensor
    values: Tensor
    queries: Tensor
    state_queries: Tensor | None  # where there are states


class TokenAttention(nn.Module):
    """Norm, projections and output of the tokens' attention.

    Rows of `projections` are ordered (head, [key, value, query, query of states], E), columns of `merge` (head,
    [from tokens, from states], E).
    """

    def __init__(self, config: ModelConfig, index: int, parallel: ModelParallelConfig, crosses: bool) -> None:
        super().__init__()
        self.config, self.index = config, index
        size = config.heads * config.head_dim
        self.norm = RMSNorm(config.width)
        self.projections = ColumnLinear(
            config.width, (3 + crosses) * size, parallel, stacked=(3 + crosses, config.head_dim)
        )
        self.scale = HeadScale(config)
        self.state_scale = HeadScale(config) if crosses else None
        self.positions = RelativeBias(config) if config.positions == "t5" else None
        self.merge = RowLinear((1 + crosses) * size, config.width, parallel)

    def project(self, x: Tensor, dropout: Dropout | None) -> TokenHeads:
        """Project the tokens x (N, b, D) of all blocks at once."""
        x = self.norm(x)
        if dropout is not None:
            x = dropout.activations(x, self.index, "attention input")
        blocks = self.projections(x).unflatten(0, (-1, self.config.window))
        count = 3 if self.state_scale is None else 4
        keys, values, queries, *others = split_heads(blocks, count, self.config.head_dim)
        state_queries = self.state_scale(unit_length(others[0])) if self.state_scale is not None else None
        return TokenHeads(unit_length(keys).to(values.dtype), values, self.scale(unit_length(queries)), state_queries)

    def to_tokens(self, heads: TokenHeads, window: Window, dropout: Dropout | None) -> Tensor:
        """Attention to the W tokens before each token -> (b, t, h, W, E)."""
        factors = None
        if dropout is not None:
            factors = dropout.attention(heads.values, self.config.heads, self.config.window, self.index)
        queries, keys, visible = heads.queries, window.keys, heads.queries.new_zeros(1, 1, self.config.window)
        if self.config.positions == "rotary":
            # here and not before, so that the cache and what the states see know nothing of positions
            queries, keys = rotated(queries, self.config.window), rotated(keys)
        if self.positions is not None:
            visible = self.scale(self.positions())
        return attend(queries, keys, window.values, banded(visible), factors)

    def to_states(self, heads: TokenHeads, keys: Tensor, values: Tensor) -> Tensor:
        """Attention to all states (b, t, h, S, E) that entered the token's block -> (b, t, h, W, E)."""
        return attend(cast(Tensor, heads.state_queries), keys, values)

    def output(self, attended: list[Tensor]) -> Tensor:
        """(b, t, h, W, E) of each kind of attention -> (N, b, D)."""
        return self.merge(merge_heads(attended).flatten(0, 1))


class MLP(nn.Module):
    """relu(norm(x) W1) W2."""

    def __init__(self, config: ModelConfig, index: int, parallel: ModelParallelConfig) -> None:
        super().__init__()
        self.index = index
        self.norm = RMSNorm(config.width)
        self.hidden = ColumnLinear(config.width, config.mlp_width, parallel)
        self.output = RowLinear(config.mlp_width, config.width, parallel)

    def forward(self, x: Tensor, dropout: Dropout | None) -> Tensor:
        x = self.output(torch.relu(self.hidden(self.norm(x))))
        return x if dropout is None else dropout.activations(x, self.index, "mlp output")
