"""Both ends of the network, and all of it in one module (one stage; a pipeline is built from the same pieces)."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
from megatron.core import ModelParallelConfig, parallel_state
from megatron.core.tensor_parallel import layers as megatron
from megatron.core.tensor_parallel.cross_entropy import vocab_parallel_cross_entropy
from torch import Tensor, nn
from torch.nn import functional

from brt_dist.config.schema import ModelConfig
from brt_dist.errors import ConfigError
from brt_dist.model.cross_entropy import Vocabulary, cross_entropy, summed_cross_entropy
from brt_dist.model.dropout import Dropout
from brt_dist.model.layers import Layer
from brt_dist.model.linear import gather, megatron_config, no_initialization
from brt_dist.model.memory import Memory
from brt_dist.model.norms import rms_normed
from brt_dist.model.oracle_heads import OracleHeads, OracleLabels
from brt_dist.model.parameters import declare, initialize, normal, ones
from brt_dist.model.recompute import Recompute, calls
from brt_dist.model.segment import Network, read_segment
from brt_dist.model.sequence import linear_of_parts, sum_to_parts
from brt_dist.model.shapes import VOCAB_MULTIPLE, padded_vocab

EMBEDDING = "embedding"
FINAL_NORM = "final_norm"


class TokenEmbedding(megatron.VocabParallelEmbedding):
    """The token embedding (V, D), tied: it embeds the tokens and, at the other end, scores them.

    Rows are split over the tensor parallel ranks and padded to equal parts.  Padding is not part of the model: its
    rows are zeros and its logits minus infinity.
    """

    def __init__(self, config: ModelConfig, parallel: ModelParallelConfig | None = None) -> None:
        if config.vocab_size is None:
            raise ConfigError("model.vocab_size is not known: give it, or a dataset to take it from")
        parallel = parallel or megatron_config()
        rows = padded_vocab(config.vocab_size, parallel.tensor_model_parallel_size)
        group = parallel_state.get_tensor_model_parallel_group()
        super().__init__(rows, config.width, init_method=no_initialization, config=parallel, tp_group=group)
        declare(self.weight, normal(1.0), 0, logical_size=config.vocab_size, multiple=VOCAB_MULTIPLE)
        self.vocab_size = config.vocab_size
        self.is_split = parallel.sequence_parallel
        self.scale = 1 / math.sqrt(config.width if config.logit_scale == "width" else config.vocab_size)
        self._projection = megatron.ColumnParallelLinear(
            config.width,
            rows,
            config=parallel,
            init_method=no_initialization,
            bias=False,
            skip_weight_param_allocation=True,
            tp_group=group,
        )

    def forward(
        self, x: Tensor, score: bool = False, target: Tensor | None = None, counted: Tensor | None = None
    ) -> Tensor:
        """Tokens (b, N) -> (N, b, D); with `score`, hidden states (N, b, D) -> this rank's logits (N, b, V/tp).

        With a target (N, b) as well, nats per token (N, b) instead, and no logits are kept; with a mask `counted`
        (N, b), the sum of the nats of these tokens.
        Under sequence parallel hidden states are this rank's tokens (N/tp, b, D); the result is of all N.
        All go through the module's call, so that ZeRO-3 can gather weights before a forward pass.
        """
        if not score:
            tokens = x.transpose(0, 1)
            return self._embed_part(tokens) if self.is_split else super().forward(tokens)
        valid = max(self.vocab_size - self.vocab_start_index, 0)
        here = Vocabulary(self.vocab_start_index, valid)
        if target is not None and counted is not None:
            return summed_cross_entropy(x, self.weight, target, counted, here, self.is_split, self.scale)
        x = x * self.scale  # scaling the states is scaling the logits, at a fraction of the cost
        if target is not None:
            return cross_entropy(x, self.weight, target, here, self.is_split)
        logits = linear_of_parts(x, self.weight) if self.is_split else self._projection(x, weight=self.weight)[0]
        if valid < logits.shape[-1]:
            logits[..., valid:] = -math.inf
        return logits

    def _embed_part(self, tokens: Tensor) -> Tensor:
        elsewhere = (tokens < self.vocab_start_index) | (tokens >= self.vocab_end_index)
        rows = functional.embedding((tokens - self.vocab_start_index).masked_fill(elsewhere, 0), self.weight)
        return sum_to_parts(rows.masked_fill(elsewhere.unsqueeze(-1), 0.0))

    def logits(self, x: Tensor) -> Tensor:
        """This rank's part (N, b, V/tp) of the logits of hidden states x (N, b, D), for the functions below."""
        return self(x, score=True)

    def losses(self, x: Tensor, target: Tensor) -> Tensor:
        """Nats per token, float32 (N, b), of hidden states x (N, b, D) and targets (N, b); keeps no logits."""
        return self(x, score=True, target=target)

    def summed_loss(self, x: Tensor, target: Tensor, counted: Tensor) -> Tensor:
        """Sum of the nats of the tokens where `counted` (N, b) is true, float32 scalar; otherwise as `losses`."""
        return self(x, score=True, target=target, counted=counted)


class FinalNorm(nn.Module):
    """The norm before the logits, the last dropout, and the heads of an oracle, if any: (N, b, D) -> (N, b, D)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.width))
        declare(self.weight, ones())
        self.index = config.layers
        self.oracle = OracleHeads.of(config) if config.objective == "oracle" else None

    def forward(self, x: Tensor, dropout: Dropout | None = None, labels: OracleLabels | None = None) -> Tensor:
        x = rms_normed(x, self.weight)
        x = x if dropout is None else dropout.activations(x, self.index, "final")
        return x if self.oracle is None or labels is None else self.oracle.supervised(x, labels)


def token_losses(logits: Tensor, target: Tensor) -> Tensor:
    """Nats per token, float32 (b, N), from this rank's logits (N, b, V/tp) and targets (b, N) in [0, V)."""
    # Megatron subtracts the maximum in place if the logits are float32 already
    private = logits.clone() if logits.dtype == torch.float32 else logits
    return vocab_parallel_cross_entropy(private, target.transpose(0, 1).contiguous()).transpose(0, 1)


def loss_sum(logits: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Sum of the nats of the tokens where `mask` (b, N) is true; float32 scalar, the same on all ranks."""
    return token_losses(logits, target).masked_fill(~mask, 0.0).sum()


def full_logits(logits: Tensor, vocab_size: int) -> Tensor:
    """Logits of the whole vocabulary (b, N, V), without padding, from those of all tensor parallel ranks."""
    return gather(logits)[..., :vocab_size].transpose(0, 1)


class ModuleSpec(NamedTuple):
    """How to build one module of the network: its logical name, its class and the arguments of that."""

    name: str
    kind: type[nn.Module]
    arguments: tuple[Any, ...]

    def build(self) -> Any:
        return self.kind(*self.arguments)


def module_specs(config: ModelConfig, parallel: ModelParallelConfig) -> list[ModuleSpec]:
    """The modules of the network in order: the one list that every assembly is built from."""
    return [
        ModuleSpec(EMBEDDING, TokenEmbedding, (config, parallel)),
        *(ModuleSpec(f"layers.{index}", Layer, (config, index, parallel)) for index in range(config.layers)),
        ModuleSpec(FINAL_NORM, FinalNorm, (config,)),
    ]


class BlockRecurrentModel(nn.Module):
    """The network on one stage (arXiv 2203.07852).

    Args:
        config: the network; `vocab_size` must be known.
        seed: of the initial values; None leaves them unset (to be loaded, or on the meta device).
        sequence_parallel: split hidden states and recurrent states over the tensor parallel ranks.  The trainer must
            add up the gradients of parameters that every rank holds whole (`sequence.sum_over_ranks`).
        recompute: what the backward pass recomputes instead of keeping; see `recompute.calls`.
        built: called with each module as soon as it is built, before the next; ZeRO-3 partitions it there.
    """

    def __init__(
        self,
        config: ModelConfig,
        seed: int | None = None,
        sequence_parallel: bool = False,
        recompute: Recompute = "none",
        built: Callable[[nn.Module], None] | None = None,
    ) -> None:
        super().__init__()
        parallel = megatron_config(sequence_parallel)
        self.config, self._calls = config, calls(recompute)
        modules = []
        for spec in module_specs(config, parallel):
            modules.append(spec.build())
            if built is not None:
                built(modules[-1])
        embedding, *layers, final_norm = modules
        self.embedding: TokenEmbedding = embedding
        self.layers = nn.ModuleList(layers * config.repeat)  # the same modules again
        self.final_norm: FinalNorm = final_norm
        if seed is not None:
            initialize(self, seed)

    def blank_memory(self, streams: int) -> list[Memory]:
        """Memory of each run of each layer before the first document."""
        return [cast(Layer, layer).blank_memory(streams) for layer in self.layers]

    def forward(
        self,
        tokens: Tensor,
        memory: Sequence[Memory],
        starts: Tensor,
        dropout: Dropout | None = None,
        target: Tensor | None = None,
        source: Tensor | None = None,
        labels: OracleLabels | None = None,
        counted: Tensor | None = None,
    ) -> tuple[Tensor, list[Memory]]:
        """Read one segment of b streams.

        Args:
            tokens: (b, N) int64.
            memory: of each layer, from the segment before.
            starts: (b, N/W) bool, whether a document starts with the block.
            target: (b, N) int64, the tokens to predict.
            source: (b, W) int64, what the encoder reads, in a model that has one.
            labels: of the heads of an oracle, in a model that has them.
            counted: (b, N) bool, the tokens whose nats are added up.

        Returns:
            With a target, the nats of each token, float32 (b, N), or with `counted` their sum, a scalar; neither keeps
            logits.  Without one, this rank's logits (N, b, V/tp), for `loss_sum`, `token_losses` or `full_logits`.
            Always also the new memory.
        """
        network = Network(self.config, self.embedding, list(self.layers), self.final_norm, self._calls)
        return read_segment(network, tokens, memory, starts, dropout, target, source, labels, counted)
