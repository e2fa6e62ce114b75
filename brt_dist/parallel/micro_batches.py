"""What a step reads on one rank, cut into micro-batches."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from brt_dist.config.schema import Config
from brt_dist.model.dropout import Dropout, MaskVersion
from brt_dist.model.oracle_heads import OracleLabels
from brt_dist.model.routing import Routing
from brt_dist.parallel.device import Device
from brt_dist.parallel.layout import Layout
from brt_dist.parallel.stage import MicroBatch


@dataclass(frozen=True)
class StepInput:
    """What one step reads, for the b streams of this rank (all micro-batches), on its device.

    Attributes:
        number: of the step, from 1; dropout masks depend on it.  Ignored in an evaluation.
        starts: (b, N/W) bool, blocks that start a document.
        tokens: (b, N) int64; None on stages that read no data.
        target: (b, N) int64, the right answers; None on stages that read no data.
        mask: (b, N) bool, positions with a target; None on stages that read no data.
        loss_tokens: tokens with a target in the whole global batch.
        source: (b, N) int64, what the encoder of an encoder-decoder reads; None for other models.
        labels: (b, N, 2 + slots) int64, what an oracle says about each token (see `Examples`); None for other models.
        labelled: tokens with labels in the whole global batch.
    """

    number: int
    starts: Tensor
    tokens: Tensor | None
    target: Tensor | None
    mask: Tensor | None
    loss_tokens: int
    source: Tensor | None = None
    labels: Tensor | None = None
    labelled: int = 0


def micro_batches(
    step: StepInput, config: Config, layout: Layout, *, masks: MaskVersion | None, targets: bool, sums: bool
) -> list[MicroBatch]:
    """What all stages know of each micro-batch of a step.

    Args:
        step: of this rank.
        config, layout: of the run.
        masks: how dropout masks are drawn in training; None: an evaluation.
        targets: whether the last stage compares with the right answers; otherwise it returns logits.
        sums: whether it then adds up the nats of all tokens with a target, instead of returning those of each.
    """
    size = layout.micro_batch
    is_split = config.parallel.sequence_parallel and layout.tensor > 1

    def dropout(i: int) -> Dropout | None:
        if masks is None:
            return None  # at rate 0 it drops nothing, but tells layers that they train, and keys their random draws
        mine = layout.rows[i * size : (i + 1) * size]
        # DeepSpeed averages over micro-batches and data parallel ranks; idle ones belong to no stream
        filled = i < layout.filled_micro_batches
        routing = Routing(share=filled * layout.data * size / layout.streams)
        rate, seed = config.model.dropout, config.run.seed
        # the keys of the masks count steps from 0
        return Dropout(rate, seed, step.number - 1, mine, is_split, mask_version=masks, routing=routing)

    def labels(i: int) -> OracleLabels | None:
        if step.labels is None:
            return None
        # their gradients are added up over micro-batches, and DeepSpeed averages over data parallel ranks
        share = layout.data / max(step.labelled, 1)
        return OracleLabels(step.labels[i * size : (i + 1) * size, :, 1:], share)

    answers = step.target.split(size) if targets and step.target is not None else None
    counted = step.mask.split(size) if sums and step.mask is not None else None
    sources = None if step.source is None else step.source.split(size)
    return [
        MicroBatch(
            starts,
            dropout(i),
            target=answers and answers[i],
            counted=counted and counted[i],
            source=sources and sources[i],
            labels=labels(i),
        )
        for i, starts in enumerate(step.starts.split(size))
    ]


def portions(
    step: StepInput, layout: Layout, device: Device
) -> Iterator[tuple[Tensor | None, tuple[Tensor, Tensor, Tensor] | None]]:
    """What DeepSpeed is given, per micro-batch: tokens, and (target, mask, weight of a nat in the mean loss)."""
    # DeepSpeed averages over micro-batches and data parallel ranks; the weight undoes that
    share = layout.micro_batches * layout.data / max(step.loss_tokens, 1)
    weight = torch.tensor(share, device=device.torch)
    for i in range(layout.micro_batches):
        rows = slice(i * layout.micro_batch, (i + 1) * layout.micro_batch)
        labels = None
        if step.target is not None and step.mask is not None:
            labels = (step.target[rows], step.mask[rows], weight)
        yield None if step.tokens is None else step.tokens[rows], labels
