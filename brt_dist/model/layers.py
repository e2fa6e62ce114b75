"""One layer: a mixer, cross-attention in a decoder, then an FFN, all with plain residuals.

A layer is pure: `layer(x, memory, starts, dropout) -> (x, memory)`.  It keeps nothing between calls, so it may run
twice (recompute) or for other streams (evaluation).  Hidden states are sequence first, (N, b, D), as Megatron's.
The memory that comes out has its gradient: given to the next call, both calls together are one call on all tokens.
"""

from typing import Any, ClassVar

import torch
from megatron.core import ModelParallelConfig
from torch import Tensor, nn

from brt_dist.config.schema import ModelConfig
from brt_dist.errors import ConfigError
from brt_dist.model.cross_attention import CrossAttention
from brt_dist.model.dropout import Dropout
from brt_dist.model.linear import megatron_config
from brt_dist.model.memory import Memory
from brt_dist.model.recompute import Call, called


class Layer(nn.Module):
    """Layer `index` (from 0) of the network `model`; values are not set yet.

    Args:
        model: the network.
        index: number of this layer in the whole model; it keys the dropout masks.
        parallel: Megatron's settings; None: those of the process groups that exist.

    Raises:
        ConfigError: no mixer or FFN takes this layer, or a size cannot be split over the tensor parallel ranks.
    """

    # The mixer's parameters are named directly below the layer, as they were before there were kinds.
    logical_names: ClassVar[dict[str, str]] = {"mixer": "", "ffn": "mlp"}

    def __init__(self, model: ModelConfig, index: int, parallel: ModelParallelConfig | None = None) -> None:
        super().__init__()
        parallel = parallel or megatron_config()
        ranks = parallel.tensor_model_parallel_size
        if model.feedback and not model.feeding_layers():
            raise ConfigError("model.feedback is set, and no layer has a state to feed back")
        mixer, ffn, crosses = model.mixer_of(index), model.ffn_of(index), model.encoder.crosses(index)
        self.model, self.index = model.at(index), index
        self.splits_sequence = parallel.sequence_parallel
        self._shapes = {
            field.name: field.local_shape(ranks, parallel.sequence_parallel) for field in mixer.memory(model)
        }
        self._wide = [field.name for field in mixer.memory(model) if field.dtype == "float32"]
        for key, size in {**mixer.tensor_sizes(model, "mixer"), **ffn.tensor_sizes(model, "ffn")}.items():
            if size % ranks:
                raise ConfigError(f"{key}={size} cannot be split over parallel.tensor={ranks} ranks")
        self._parts = ranks if parallel.sequence_parallel else 1
        self.mixer = mixer.build(self.model, index, parallel)
        self.cross = CrossAttention(model, index, parallel) if crosses else None
        self.ffn = ffn.build(self.model, index, parallel)

    def forward(
        self,
        x: Tensor,
        memory: Memory,
        starts: Tensor,
        dropout: Dropout | None = None,
        fed_back: Any = None,
        call: Call = called,
        source: Tensor | None = None,
    ) -> tuple[Tensor, Memory]:
        """One segment of b streams, or with feedback one block of it.

        Args:
            x: (N, b, D), N a multiple of the window; under sequence parallel this rank's tokens (N/tp, b, D).
            memory: what the layer remembers of these streams.
            starts: (b, N/W) bool, whether a document starts with the block.
            dropout: None outside training.
            fed_back: with feedback, what `enter` of the mixer that feeds back made: this layer's own, or another's.
            call: how to call the mixer and cross-attention.
            source: (M, b, D), what an encoder made of its source; only a layer of a decoder reads it.

        Returns:
            x of the same shape, and the memory after the last token.

        Raises:
            ConfigError: shapes that do not belong together.
        """
        self._check(x, memory, starts, fed_back)
        mixed, memory = call(self.mixer, x, memory, starts, dropout, fed_back)
        x = x + mixed
        if self.cross is not None:
            x = x + call(self.cross, x, source, dropout)
        return x + self.ffn(x, dropout), memory

    def blank_memory(self, streams: int) -> Memory:
        """Memory of `streams` streams before their first document: zeros, in the types that a forward returns."""
        like = next(self.parameters())
        wide = torch.promote_types(like.dtype, torch.float32)
        return {
            name: like.new_zeros((streams, *shape), dtype=wide if name in self._wide else like.dtype)
            for name, shape in self._shapes.items()
        }

    def _check(self, x: Tensor, memory: Memory, starts: Tensor, fed_back: Any) -> None:
        window = self.model.window
        length = len(x) * self._parts
        if x.dim() != 3 or x.shape[2] != self.model.width or length % window or not length:
            raise ConfigError(
                f"hidden states of shape {tuple(x.shape)}: expected (segment, streams, {self.model.width}) with a "
                f"segment that is a multiple of model.window={window}"
            )
        streams = x.shape[1]
        if starts.shape != (streams, length // window) or starts.dtype != torch.bool:
            raise ConfigError(
                f"starts of shape {tuple(starts.shape)} and {starts.dtype}: expected {(streams, length // window)} "
                f"and torch.bool, one value per stream and block of {window} tokens"
            )
        for name, shape in self._shapes.items():
            given, expected = memory.get(name), (streams, *shape)
            if given is None or given.shape != expected:
                found = "missing" if given is None else f"of shape {tuple(given.shape)}"
                raise ConfigError(f"memory.{name} is {found}: expected shape {expected}")
        if (fed_back is not None) != self.model.feedback or (fed_back is not None and starts.shape[1] != 1):
            raise ConfigError("with model.feedback, and only then, a layer runs on one block, with the state it enters")
