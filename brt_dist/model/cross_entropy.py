"""Cross entropy of hidden states and the token embedding, without the logits of all tokens and the whole vocabulary.

Logits are computed a tile at a time: some tokens, some rows of the embedding.  The forward pass keeps two numbers per
token, from which the backward pass recomputes a tile's probabilities.  That is a third more matrix products than with
stored logits (N, b, V), which would take many times the memory of a layer.

Where one tile holds the whole vocabulary, the sum over the tokens that count needs no second pass: its gradient is one
number, which scales the gradients of the inputs.  So the forward pass computes those while it has the logits, and keeps
them in place of the inputs.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from torch import Tensor

from brt_dist.model import rows as row_kernels
from brt_dist.model.norms import widened
from brt_dist.model.sequence import gathered, summed_part
from brt_dist.model.shapes import CACHED_TOKENS as CACHED
from brt_dist.model.shapes import TILE_COLUMNS as COLUMNS
from brt_dist.model.shapes import TILE_TOKENS as TOKENS
from brt_dist.model.shapes import is_one_tile


class Vocabulary(NamedTuple):
    """The rows of the embedding that this rank holds."""

    first: int
    """its first token"""
    valid: int
    """how many of its rows are tokens; the others are padding"""


def cross_entropy(x: Tensor, weight: Tensor, target: Tensor, vocabulary: Vocabulary, is_split: bool) -> Tensor:
    """Nats per token, float32 (n, b), the same on all tensor parallel ranks.

    Args:
        x: (n, b, D) hidden states, of which x·weight are the logits; with `is_split` this rank's (n/tp, b, D).
        weight: (V/tp, D) this rank's rows of the embedding.
        target: (n, b) int64 in [0, V).
        is_split: sequence parallel.
    """
    return cast(Tensor, _CrossEntropy.apply(x, weight, target, vocabulary, is_split))


def summed_cross_entropy(
    x: Tensor,
    weight: Tensor,
    target: Tensor,
    counted: Tensor,
    vocabulary: Vocabulary,
    is_split: bool,
    scale: float = 1.0,
) -> Tensor:
    """Sum of the nats of the tokens that count, float32 (), the same on all tensor parallel ranks.

    Args:
        counted: (n, b) bool; the others are as :func:`cross_entropy` has them.
        scale: multiplies the logits.
    """
    ranks = parallel_state.get_tensor_model_parallel_group().size()
    has_gradient = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    if has_gradient and is_one_tile(len(weight), ranks):
        return cast(Tensor, _SummedCrossEntropy.apply(x, weight, target, counted, vocabulary.valid, scale))
    return cross_entropy(x * scale, weight, target, vocabulary, is_split).masked_fill(~counted, 0.0).sum()


class _SummedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, target: Tensor, counted: Tensor, valid: int, scale: float
    ) -> Tensor:
        rows, places, counts = x.flatten(0, 1), target.flatten(), counted.flatten().to(widened(x).dtype)
        of_rows, of_weight, nats = torch.empty_like(rows), None, []
        for part in _slices(len(rows), _tokens(rows)):
            scaled, place = rows[part] * scale, places[part]  # a part at a time, as all is in memory now
            product = scaled @ weight.t()
            chosen = widened(product.gather(1, place[:, None]).squeeze(1))
            largest, total, slope = _normalized(product, valid, place, counts[part])
            nats.append(total.log() - (chosen - largest))
            torch.mm(slope, weight, out=of_rows[part])
            if of_weight is None:
                of_weight = slope.t() @ scaled
            else:
                of_weight = widened(of_weight)
                _add_product(of_weight, slope.t(), scaled)
            del product, slope  # before the next tile is made
        ctx.scale = scale
        ctx.save_for_backward(of_rows.view(x.shape), cast(Tensor, of_weight).to(weight.dtype))
        return torch.cat(nats).masked_fill(counts == 0, 0.0).sum()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        of_x, of_weight = ctx.saved_tensors  # in place, as memory is scarcest now; a second backward pass is refused
        return of_x.mul_(gradient * ctx.scale), of_weight.mul_(gradient), None, None, None, None


def _normalized(product: Tensor, valid: int, place: Tensor, counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Largest logit and sum of exp(logit - largest) of each row (n,), and the gradient of the logits (n, V).

    Args:
        product: (n, V) logits, the first `valid` of them of tokens; may be overwritten.
        place: (n,) the targets.
        counts: (n,) by what the nats of a token are multiplied.
    """
    if (kernels := row_kernels.fused(product)) is not None:
        largest, total = cast(tuple[Tensor, Tensor], kernels.softmax_scan(product, valid))
        return largest, total, cast(Tensor, kernels.softmax_slope(product, valid, largest, total, place, counts))
    logits = _without_padding(product, valid)
    largest = logits.amax(-1)
    above = logits.sub_(largest[:, None]).exp_()
    total = above.sum(-1)
    slope = above.mul_((counts / total)[:, None]).scatter_add_(1, place[:, None], counts.neg()[:, None])
    return largest, total, slope.to(product.dtype)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, target: Tensor, vocabulary: Vocabulary, is_split: bool) -> Tensor:
        rows = (gathered(x) if is_split else x).flatten(0, 1)
        local = target.flatten() - vocabulary.first  # outside of [0, V/tp) on all ranks but one
        scans = [_scan(rows[part], weight, local[part], vocabulary.valid) for part in _slices(len(rows), _tokens(rows))]
        largest, total, chosen = (torch.cat(numbers) for numbers in zip(*scans, strict=True))
        group = parallel_state.get_tensor_model_parallel_group()
        if group.size() > 1:
            here = largest.clone()
            dist.all_reduce(largest, dist.ReduceOp.MAX, group)
            both = torch.stack([total * (here - largest).exp(), chosen - largest.where(_is_in(local, weight), 0.0)])
            dist.all_reduce(both, group=group)
            total, shifted = both
        else:
            shifted = chosen - largest
        ctx.save_for_backward(x, weight, local, largest, total)
        ctx.vocabulary, ctx.is_split = vocabulary, is_split
        return (total.log() - shifted).view(target.shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, local, largest, total = ctx.saved_tensors
        whole = gathered(x) if ctx.is_split else x
        rows, of_loss = whole.flatten(0, 1), gradient.flatten()
        parts, of_weight = list(_slices(len(rows), _tokens(rows))), torch.empty_like(weight)
        in_one = len(weight) <= COLUMNS  # else gradients of rows are sums over tiles
        of_rows = torch.zeros_like(rows, dtype=rows.dtype if in_one else largest.dtype)
        kernels, scales = row_kernels.fused(rows), total.log().add_(largest)
        # a token's factor is applied to its D numbers rather than to its logits, which are more
        factored = rows if kernels is not None else (rows * of_loss[:, None]).to(rows.dtype)
        for columns in _slices(len(weight), COLUMNS):
            tile, of_columns = weight[columns], None
            valid = min(max(ctx.vocabulary.valid - columns.start, 0), len(tile))
            for part in parts:
                product, (place, is_in) = rows[part] @ tile.t(), _places(local[part], columns)
                if kernels is not None:
                    place = place.where(is_in, -1)
                    slope = kernels.softmax_slope(product, valid, largest[part], total[part], place, of_loss[part])
                else:
                    slope = _slope(product, valid, scales[part], place, is_in).to(rows.dtype)
                _add_product(of_rows[part], slope, tile)
                if of_columns is None:
                    of_columns = slope.t() @ factored[part]
                else:
                    of_columns = widened(of_columns)
                    _add_product(of_columns, slope.t(), factored[part])
            of_weight[columns] = cast(Tensor, of_columns)
        if kernels is None:
            of_rows *= of_loss[:, None]
        of_x = of_rows.to(x.dtype).view(whole.shape)
        group = parallel_state.get_tensor_model_parallel_group()
        if ctx.is_split:
            of_x = summed_part(of_x)
        elif group.size() > 1:
            dist.all_reduce(of_x, group=group)
        return of_x, of_weight, None, None, None


def _scan(rows: Tensor, weight: Tensor, local: Tensor, valid: int) -> tuple[Tensor, Tensor, Tensor]:
    """Largest logit, sum of exp(logit - largest), and logit of the target or 0, each (n,), of rows (n, D)."""
    largest = total = chosen = None
    for columns in _slices(len(weight), COLUMNS):
        product = rows @ weight[columns].t()
        place, is_in = _places(local, columns)
        target = widened(product.gather(1, place[:, None]).squeeze(1)).where(is_in, 0.0)
        here, sums = _sums(product, max(valid - columns.start, 0))
        if largest is None or total is None or chosen is None:
            largest, total, chosen = here, sums, target
            continue
        above = torch.maximum(largest, here)
        total = total * (largest - above).exp() + sums * (here - above).exp()
        largest, chosen = above, chosen + target
    return cast(Tensor, largest), cast(Tensor, total), cast(Tensor, chosen)


def _sums(product: Tensor, valid: int) -> tuple[Tensor, Tensor]:
    """Largest of the first `valid` logits of each row (n, c), and the sum of exp(logit - largest), each (n,)."""
    if (kernels := row_kernels.fused(product)) is not None:
        return cast(tuple[Tensor, Tensor], kernels.softmax_scan(product, min(valid, product.shape[1])))
    logits = _without_padding(product, valid)
    largest = logits.amax(-1).clamp_min(torch.finfo(logits.dtype).min)  # there may be padding only
    return largest, logits.sub_(largest[:, None]).exp_().sum(-1)


def _slope(product: Tensor, valid: int, scale: Tensor, place: Tensor, is_in: Tensor) -> Tensor:
    """Gradient of a tile of logits (n, c), of which `valid` are tokens, for a token's loss of one nat.

    Args:
        scale: (n,) logarithm of the sum of exp(logit) over the vocabulary.
        place, is_in: (n,) where the targets are, and whether they are in the tile.
    """
    of_logits = _without_padding(product, valid).sub_(scale[:, None]).exp_()
    return of_logits.scatter_add_(1, place[:, None], is_in.to(of_logits.dtype).neg_()[:, None])


def _add_product(total: Tensor, one: Tensor, other: Tensor) -> None:
    """total += one @ other, without an extra pass if the types agree."""
    if total.dtype == one.dtype:
        total.addmm_(one, other)
    else:
        total += one @ other


def _without_padding(product: Tensor, valid: int) -> Tensor:
    """The logits of a tile in float32 or wider, which may be the same memory; -inf from column `valid` on."""
    logits = widened(product)
    logits[:, valid:] = -torch.inf
    return logits


def _places(local: Tensor, columns: slice) -> tuple[Tensor, Tensor]:
    """Where in a tile the targets are, or 0; and whether they are in it."""
    is_in = (local >= columns.start) & (local < columns.stop)
    return (local - columns.start).where(is_in, 0), is_in


def _tokens(rows: Tensor) -> int:
    """Tokens of a tile; on a CPU few enough for its logits to stay in the cache between passes."""
    return min(TOKENS, CACHED) if rows.device.type == "cpu" else TOKENS


def _is_in(local: Tensor, weight: Tensor) -> Tensor:
    return (local >= 0) & (local < len(weight))


def _slices(size: int, portion: int) -> Iterator[slice]:
    return (slice(begin, min(begin + portion, size)) for begin in range(0, size, portion))
