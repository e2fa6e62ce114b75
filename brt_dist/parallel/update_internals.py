"""DeepSpeed's optimizer update, taken apart: first the norm of the gradient, then the update or none.

DeepSpeed measures, decides and updates in one call, each rank separately and with several host reads.  Here the norm
stays on the device until all ranks have agreed (`control`), and the agreed value is passed back to DeepSpeed.  This
uses undocumented parts of DeepSpeed; see deepspeed_internals.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from types import MethodType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from brt_dist.config.schema import Config
from brt_dist.config.zero_rules import scatters_sums
from brt_dist.model.parameters import LogicalParameter
from brt_dist.model.sequence import sum_over_ranks
from brt_dist.parallel.reduction import Bucket, Reduction

_EPSILON = 1e-6  # DeepSpeed's, in the denominator of the clipping factor


class Update(ABC):
    """The update of one engine.

    Args:
        engine: DeepSpeed's.
        parameters: of this rank.
        limit: clip the gradient to this norm; None: no clipping.
    """

    def __init__(self, engine: Any, parameters: Sequence[LogicalParameter], limit: float | None) -> None:
        self.engine, self.optimizer = engine, engine.optimizer
        self.parameters, self.limit = parameters, limit
        self.agreed = 0.0  # the norm, of this step

    def finish(self) -> None:  # noqa: B027 - DeepSpeed has, where nothing else is said
        """Finish reducing all gradients over data parallel ranks; called before anything else.  Collective."""

    @abstractmethod
    def gradient(self, parameter: LogicalParameter) -> Tensor | None:
        """What this rank will update of a parameter: that part of its reduced gradient, a view; None: nothing."""

    @property
    def is_offloaded(self) -> bool:
        """Whether the optimizer is on the host, and the reduced gradients with it."""
        return False

    @abstractmethod
    def norm(self) -> Tensor:
        """Norm of the gradient of the global batch, on the device; not finite if the gradient is not.  Collective."""

    @torch.no_grad()
    def sum_over_tensor_ranks(self, whole: Sequence[LogicalParameter]) -> None:
        """Add up gradients over tensor parallel ranks, after :meth:`finish` and before :meth:`norm`.  Collective.

        A rank sums only the part that it updates; which that is, is the same on all tensor parallel ranks.

        Args:
            whole: parameters that every tensor parallel rank holds whole, each with the gradient of its own tokens.
        """
        here = {p.local: gradient for p in whole if (gradient := self.gradient(p)) is not None}
        sum_over_ranks(list(here.values()), self.engine.device)
        if self.is_offloaded:
            # DeepSpeed took these norms during the backward pass
            norms = {self.optimizer.get_param_id(weight): gradient.norm(2) for weight, gradient in here.items()}
            self.optimizer.norm_for_param_grads.update(norms)

    def decide(self, norm: float) -> None:
        """Clip by this norm in the following update; if it is not finite, skip the update."""
        self.agreed = norm

    def close(self) -> None:
        """Release the engine and its parameters."""
        self.engine = self.optimizer = None
        self.parameters = ()

    @property
    def is_left_out(self) -> bool:
        return not math.isfinite(self.agreed)


def update_of(engine: Any, parameters: Sequence[LogicalParameter], config: Config, groups: Any) -> Update:
    """The update of an engine.

    Args:
        groups: Megatron's (an `mpu`).
    """
    limit = config.optimizer.clip_norm
    if scatters_sums(config):
        return _SumsOfBf16(engine, parameters, limit, groups, _reduction(engine, parameters, config, groups))
    match config.parallel.zero_stage:
        case 0:
            return _WithoutZero(engine, parameters, limit, groups)
        case 3:
            return _WeightsSplit(engine, parameters, limit)
        case _:
            return _GradientsSplit(engine, parameters, limit)


def _reduction(engine: Any, parameters: Sequence[LogicalParameter], config: Config, groups: Any) -> Reduction:
    """Reduces the sums of gradients in DeepSpeed's place, from its buffers."""
    engine.enable_backward_allreduce = engine.pipeline_enable_backward_allreduce = False
    zero, setting = engine.optimizer, config.parallel.zero
    tied: set[int] = set()
    if config.parallel.pipeline > 1:
        tied = {id(weight) for weight, _ in engine.module.get_tied_weights_and_groups()}
    buffers = (zero.bf16_groups, zero.fp32_groups_gradients_flat, zero.fp32_groups_gradient_flat_partition)
    buckets = [
        Bucket(weights, whole, own, is_late=setting.overlap is False or any(id(weight) in tied for weight in weights))
        for weights, whole, own in zip(*buffers, strict=True)
    ]
    # the backward pass ends with what comes first in the forward pass
    place = {id(parameter.local): number for number, parameter in enumerate(parameters)}
    buckets.sort(key=lambda bucket: (bucket.is_late, -min(place[id(weight)] for weight in bucket.parameters)))
    dtype = torch.bfloat16 if setting.reduce_dtype == "bf16" else torch.float32
    group = groups.get_data_parallel_group()
    return Reduction(buckets, config.micro_batches, group, dtype, setting.reduce_scatter)


class _WithoutZero(Update):
    """Whole gradients; DeepSpeed calls our optimizer unchanged."""

    def __init__(self, engine: Any, parameters: Sequence[LogicalParameter], limit: float | None, groups: Any) -> None:
        super().__init__(engine, parameters, limit)
        self._groups = groups
        if groups.get_data_parallel_world_size() == 1:
            engine.enable_backward_allreduce = False  # it would copy all gradients to a buffer and back

    def finish(self) -> None:
        # A weight that nothing used got no gradient, such as one that writes a state that is not read again in the
        # segment.  With ZeRO it gets zeros, and so it is updated (it decays) and has optimizer state to save.
        for parameter in self.parameters:
            if parameter.local.grad is None and parameter.local.requires_grad:
                parameter.local.grad = torch.zeros_like(parameter.local)

    def gradient(self, parameter: LogicalParameter) -> Tensor | None:
        return parameter.local.grad

    def norm(self) -> Tensor:
        from deepspeed.runtime.utils import clip_grad_norm_

        # with no limit it only measures
        measured: Tensor = clip_grad_norm_([p.local for p in self.parameters], math.inf, mpu=self._groups)
        return measured

    def decide(self, norm: float) -> None:
        super().decide(norm)
        for parameter in self.parameters:
            gradient = parameter.local.grad
            if self.is_left_out:
                parameter.local.grad = None
            elif gradient is not None and self.limit is not None:
                gradient.mul_(_factor(norm, self.limit, gradient.device))


class _GradientsSplit(Update):
    """ZeRO 1 and 2: DeepSpeed's step gets the agreed values where it would compute its own."""

    def __init__(self, engine: Any, parameters: Sequence[LogicalParameter], limit: float | None) -> None:
        super().__init__(engine, parameters, limit)
        zero = self.optimizer
        self._measure = zero.scaled_global_norm
        zero.check_grad_overflow = True
        zero.check_overflow = self._check_overflow
        zero.scaled_global_norm = lambda *_, **__: self.agreed
        zero.unscale_and_clip_grads = self._clip

    @property
    def is_offloaded(self) -> bool:
        return bool(self.optimizer.cpu_offload)

    def gradient(self, parameter: LogicalParameter) -> Tensor | None:
        weight: Any = parameter.local
        mapping = weight._hp_mapping
        return None if mapping is None else mapping.get_lp_grad_fragment(weight._index_in_param_group)

    def norm(self) -> Tensor:
        measured: Tensor = self._measure()
        return measured

    def _check_overflow(self, partition_gradients: bool = True) -> None:
        self.optimizer.overflow = self.is_left_out
        if self.is_left_out:
            # DeepSpeed keeps them if the optimizer is offloaded, and adds the next step's
            for group in self.optimizer.averaged_gradients:
                self.optimizer.averaged_gradients[group] = None

    def _clip(self, gradients: Sequence[Tensor], norm: float) -> None:
        if self.limit is None:
            return
        for gradient in gradients:
            clip = (torch.tensor(norm, dtype=torch.float32) + _EPSILON) / self.limit
            gradient.mul_((1.0 / clip.clamp(min=1.0)).to(gradient.device, non_blocking=True))


class _WeightsSplit(Update):
    """ZeRO 3: likewise."""

    def __init__(self, engine: Any, parameters: Sequence[LogicalParameter], limit: float | None) -> None:
        super().__init__(engine, parameters, limit)
        self._measure = self.optimizer._get_norm_groups
        # DeepSpeed's norms are fp64 here
        self.optimizer._get_norm_groups = lambda: [torch.tensor(self.agreed, dtype=torch.float64)]

    @property
    def is_offloaded(self) -> bool:
        return bool(self.optimizer.offload_optimizer)

    def gradient(self, parameter: LogicalParameter) -> Tensor | None:
        part: Tensor = self.optimizer._get_fp32_grad_state_partition(parameter.local, release_swap_buffers=False)[0]
        return part

    def norm(self) -> Tensor:
        from deepspeed.runtime.utils import combine_grad_norm_groups

        measured: Tensor = combine_grad_norm_groups(self._measure())
        return measured


class _SumsOfBf16(Update):
    """ZeRO 1 with bf16 weights and fp32 sums of gradients: only the last lines of DeepSpeed's step remain."""

    def __init__(
        self,
        engine: Any,
        parameters: Sequence[LogicalParameter],
        limit: float | None,
        groups: Any,
        reduction: Reduction,
    ) -> None:
        super().__init__(engine, parameters, limit)
        self._groups, self._reduction = groups, reduction
        self.optimizer.step = MethodType(self._step, self.optimizer)
        self._group_of = {id(weight): i for i, group in enumerate(self.optimizer.bf16_groups) for weight in group}

    def gradient(self, parameter: LogicalParameter) -> Tensor | None:
        weight: Any = parameter.local
        if weight._hp_mapping is None:
            return None
        place = weight._hp_mapping.hp_fragment_address
        sums: Tensor = self.optimizer.fp32_groups_gradient_flat_partition[self._group_of[id(weight)]]
        return sums.narrow(0, place.start, place.numel)

    def close(self) -> None:
        super().close()
        self._reduction.close()

    def finish(self) -> None:
        self._reduction.finish()

    @torch.no_grad()
    def norm(self) -> Tensor:
        counted = list(self._counted())
        total = torch.zeros((), device=self.engine.device)
        if counted:
            total = torch.stack(torch._foreach_norm(counted)).square().sum()
        dist.all_reduce(total, group=self._groups.get_data_parallel_group())
        dist.all_reduce(total, group=self._groups.get_model_parallel_group())
        return total.sqrt()

    def _counted(self) -> Any:
        """The gradients that this rank updates with, without copies that another rank counts."""
        zero, is_first = self.optimizer, self._groups.get_tensor_model_parallel_rank() == 0
        is_split = {id(parameter.local): parameter.partition_dim is not None for parameter in self.parameters}
        for weights, gradients in zip(zero.bf16_groups, zero.fp32_groups_gradient_flat_partition, strict=True):
            for weight in weights:
                place = weight._hp_mapping and weight._hp_mapping.hp_fragment_address
                is_copy = getattr(weight, "ds_pipe_replicated", False) or not (is_first or is_split[id(weight)])
                if place and not is_copy:
                    yield gradients.narrow(0, place.start, place.numel)

    @torch.no_grad()
    def _step(self, zero: Any, closure: Any = None) -> None:
        zero.overflow = self.is_left_out
        if not self.is_left_out:
            parts = zip(zero.fp32_groups_flat_partition, zero.fp32_groups_gradient_flat_partition, strict=True)
            for weights, gradients in parts:
                if self.limit is not None:
                    gradients.mul_(_factor(self.agreed, self.limit, gradients.device))
                weights.grad = gradients
            zero.optimizer.step()
            zero._lazy_init_hp_params_optimizer_state()
            zero.update_lp_params()
        zero.clear_hp_grads()


def _factor(norm: float, limit: float, device: torch.device) -> Tensor:
    """The factor that clips a gradient of norm `norm` to `limit`, (1,)."""
    # tensors, as in DeepSpeed: a number divided by a tensor is rounded twice
    norms, limits = (torch.tensor([value], dtype=torch.float32) for value in (norm, limit))
    return torch.min(torch.ones(1), limits / (norms + _EPSILON)).to(device, non_blocking=True)
