"""The model as a sequence of modules: whole on one rank, or cut into stages by DeepSpeed."""

from collections.abc import Callable, Iterator
from typing import cast

from deepspeed.pipe import LayerSpec, PipelineModule, TiedLayerSpec
from megatron.core import ModelParallelConfig
from torch import Tensor, nn

from brt_dist.config.schema import ModelConfig
from brt_dist.model.model import TokenEmbedding
from brt_dist.model.segment import Network, read_segment
from brt_dist.parallel.layout import Layout, topology
from brt_dist.parallel.stage import StageContext, StreamLayer, StreamNorm, called, recomputed

EMBEDDING = "embedding"
FINAL_NORM = "final_norm"

Loss = Callable[[Tensor, tuple[Tensor, Tensor, Tensor]], Tensor]


def named_parts(stage: "WholeModel | PipelineStage") -> Iterator[tuple[str, nn.Module]]:
    """Modules of this rank that hold parameters, each once, with their logical names (`layers.3`, `embedding`)."""
    for module in stage.modules():
        if isinstance(module, StreamLayer):
            yield f"layers.{module.index}", module.layer
        elif isinstance(module, StreamNorm):
            yield FINAL_NORM, module.norm
        elif isinstance(module, TokenEmbedding):
            yield EMBEDDING, module


class WholeModel(nn.Module):
    """All layers on this rank: tokens (b, N) -> logits (N, b, V/tp)."""

    def __init__(
        self, config: ModelConfig, context: StageContext, parallel: ModelParallelConfig, recompute: bool
    ) -> None:
        super().__init__()
        self.embedding = TokenEmbedding(config, parallel)
        self.layers = nn.ModuleList(StreamLayer(config, i, context, parallel, recompute) for i in range(config.layers))
        self.final_norm = StreamNorm(config, context)
        self._config, self._context = config, context
        self._call = recomputed if recompute else called

    def forward(self, tokens: Tensor) -> Tensor:
        self._context.advance()
        layers = [cast(StreamLayer, layer).layer for layer in self.layers]
        network = Network(self._config, self.embedding, layers, self.final_norm.norm, self._call)
        memory = [self._context.read(index) for index in range(len(layers))]
        micro_batch = self._context.micro_batch
        logits, after = read_segment(network, tokens, memory, micro_batch.starts, micro_batch.dropout)
        for index, layer in enumerate(after):
            self._context.write(index, layer)
        return logits


class PipelineStage(PipelineModule):
    """The layers of this rank's stage.  First stage: tokens (b, N) in; last stage: logits (N, b, V/tp) out.

    Stages are cut so that each has the same number of layers, as nearly as possible.  The first and the last hold a
    copy each of the token embedding, which is tied to the output; DeepSpeed adds up their gradients.
    """

    def __init__(
        self,
        config: ModelConfig,
        layout: Layout,
        context: StageContext,
        parallel: ModelParallelConfig,
        recompute: bool,
        loss: Loss,
    ) -> None:
        table = (EMBEDDING, TokenEmbedding, config, parallel)
        super().__init__(
            layers=[
                TiedLayerSpec(*table, tied_weight_attr="weight"),
                *(LayerSpec(StreamLayer, config, i, context, parallel, recompute) for i in range(config.layers)),
                LayerSpec(StreamNorm, config, context),
                TiedLayerSpec(*table, tied_weight_attr="weight", forward_fn=_logits),
            ],
            topology=topology(layout),
            loss_fn=loss,
            partition_method=f"type:{StreamLayer.__name__}",
        )
        self._context = context

    def forward(self, forward_input: Tensor) -> Tensor:
        self._context.advance()
        return super().forward(forward_input)


def _logits(embedding: TokenEmbedding, x: Tensor) -> Tensor:
    return embedding.logits(x)
