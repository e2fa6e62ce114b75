"""The model as a sequence of modules: whole on one rank, or cut into stages by DeepSpeed."""

from collections.abc import Callable, Iterator, Sequence
from typing import cast

from deepspeed.pipe import LayerSpec, PipelineModule, TiedLayerSpec
from megatron.core import ModelParallelConfig
from torch import Tensor, nn

from brt_dist.config.schema import ModelConfig
from brt_dist.model.layers import Layer
from brt_dist.model.model import (
    EMBEDDING,
    FINAL_NORM,
    BlockRecurrentModel,
    TokenEmbedding,
    module_specs,
)
from brt_dist.model.recompute import Recompute
from brt_dist.parallel.deepspeed_internals import cut_layers
from brt_dist.parallel.layout import Layout, topology
from brt_dist.parallel.stage import StageContext, StreamLayer, StreamNorm

Loss = Callable[[Tensor, tuple[Tensor, Tensor, Tensor]], Tensor]


class WholeModel(nn.Module):
    """All layers on this rank, with their memory attached: tokens (b, N) -> scores.

    Scores are what the micro-batch asks for (`MicroBatch.target`, `counted`).

    Args:
        built: as for `BlockRecurrentModel`.
    """

    def __init__(
        self,
        config: ModelConfig,
        context: StageContext,
        parallel: ModelParallelConfig,
        recompute: Recompute,
        built: Callable[[nn.Module], None] | None = None,
    ) -> None:
        super().__init__()
        self.model = BlockRecurrentModel(
            config, sequence_parallel=parallel.sequence_parallel, recompute=recompute, built=built
        )
        self._context = context

    def forward(self, tokens: Tensor) -> Tensor:
        self._context.advance()
        micro_batch = self._context.micro_batch
        memory = [self._context.read(index) for index in range(len(self.model.layers))]
        scores: Tensor
        scores, after = self.model(
            tokens,
            memory,
            micro_batch.starts,
            micro_batch.dropout,
            micro_batch.target,
            micro_batch.source,
            micro_batch.labels,
            micro_batch.counted,
        )
        for index, layer in enumerate(after):
            self._context.write(index, layer)
        return scores

    def logical_modules(self) -> Iterator[tuple[str, nn.Module]]:
        """Logical name and module of everything with parameters that this rank holds, in order."""
        yield EMBEDDING, self.model.embedding
        for index in range(self.model.config.layers):
            yield f"layers.{index}", self.model.layers[index]
        yield FINAL_NORM, self.model.final_norm


class PipelineStage(PipelineModule):
    """The layers of this rank's stage.  First stage: tokens (b, N) in; last stage: scores out.

    The first and the last stage each hold a copy of the token embedding, which is tied to the output; DeepSpeed adds up
    their gradients.

    Args:
        stages: the layers of each stage.
    """

    def __init__(
        self,
        config: ModelConfig,
        layout: Layout,
        stages: Sequence[range],
        context: StageContext,
        parallel: ModelParallelConfig,
        recompute: Recompute,
        loss: Loss,
    ) -> None:
        table, *layers, norm = module_specs(config, parallel)

        def score(embedding: TokenEmbedding, x: Tensor) -> Tensor:
            target, counted = context.micro_batch.target, context.micro_batch.counted
            if target is None:
                return embedding.logits(x)
            if counted is not None:
                return embedding.summed_loss(x, target.transpose(0, 1), counted.transpose(0, 1))
            return embedding.losses(x, target.transpose(0, 1)).transpose(0, 1)

        # in the list below, the embedding is before the layers; norm and logits follow
        cut_layers(self, [0, *(1 + held.start for held in stages[1:]), len(layers) + 3])
        super().__init__(
            layers=[
                TiedLayerSpec(EMBEDDING, table.kind, *table.arguments, tied_weight_attr="weight"),
                *(LayerSpec(StreamLayer, layer.build, context, recompute) for layer in layers),
                LayerSpec(StreamNorm, norm.build, context),
                TiedLayerSpec(EMBEDDING, table.kind, *table.arguments, tied_weight_attr="weight", forward_fn=score),
            ],
            topology=topology(layout),
            loss_fn=loss,
        )
        self._context = context

    def forward(self, forward_input: Tensor) -> Tensor:
        """Called by DeepSpeed's engine, once for each micro-batch in order."""
        self._context.advance()
        return super().forward(forward_input)

    def logical_modules(self) -> Iterator[tuple[str, nn.Module]]:
        """Logical name and module of everything with parameters that this rank holds, in order and each once."""
        for module in self.modules():
            if isinstance(module, Layer):
                yield f"layers.{module.index}", module
            elif isinstance(module, StreamNorm):
                yield FINAL_NORM, module.norm
            elif isinstance(module, TokenEmbedding):
                yield EMBEDDING, module


def runs_of(stage: "WholeModel | PipelineStage") -> Iterator[tuple[int, Layer]]:
    """The layers of this rank, once per run (`model.repeat`), in order, by the number of their memory."""
    if isinstance(stage, WholeModel):
        yield from enumerate(cast(list[Layer], list(stage.model.layers)))
    else:
        yield from ((layer.index, layer) for layer in layers_of(stage))


def layers_of(stage: WholeModel | PipelineStage) -> Iterator[Layer]:
    """The layers of this rank, in order."""
    return (module for _, module in stage.logical_modules() if isinstance(module, Layer))
