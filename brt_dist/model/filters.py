"""Causal filters over all tokens of a document, block by block: diagonal state spaces (S4D), and kernels without state.

Shapes: b streams, t blocks, W tokens of a block, F filters for each of D channels, n = N/2 complex states for each.
Everything is computed in float32 at least; n states are conjugate pairs of which one is kept.
"""

import math
from typing import NamedTuple

import torch
from megatron.core import ModelParallelConfig
from torch import Tensor, nn
from torch.nn import functional

from brt_dist.model.norms import widened
from brt_dist.model.parameters import constant, declare, normal, uniform
from brt_dist.model.regions import shared

FIRST_DECAY = 0.5  # real part of A
STEPS = (1e-3, 1e-1)  # range of dt
UNSTRUCTURED_FEATURES = 16
UNSTRUCTURED_DECAY = (1e-3, 1e-1)  # range of alpha, per token


class Space(NamedTuple):
    """A discretised diagonal state space: s' = exp(rate) s + u, y = 2 Re(read · s'), as s4d.py with zero-order hold."""

    rate: Tensor
    """complex (..., n): dt A"""
    read: Tensor
    """complex (..., n): C (exp(dt A) - 1) / A"""

    @classmethod
    def of(cls, log_dt: Tensor, log_decay: Tensor, frequency: Tensor, read: Tensor) -> "Space":
        """From log dt (...), log -Re A (..., n), Im A (..., n) and C as real numbers (..., n, 2)."""
        poles = torch.complex(-log_decay.exp(), frequency)
        rate = poles * log_dt.exp().unsqueeze(-1)
        return cls(rate, torch.view_as_complex(read.contiguous()) * torch.expm1(rate) / poles)

    def powers(self, first: int, count: int) -> Tensor:
        """exp(rate j) for j = first, ..., complex (..., n, count)."""
        steps = torch.arange(first, first + count, device=self.rate.device, dtype=self.rate.real.dtype)
        return (self.rate.unsqueeze(-1) * steps).exp()

    def kernel(self, length: int) -> Tensor:
        """What an input of one token leaves on it and the tokens after it, real (..., length)."""
        return 2 * (self.read.unsqueeze(-1) * self.powers(0, length)).sum(-2).real

    def seen(self, state: Tensor) -> Tensor:
        """What a state (..., n) shows, real (...)."""
        return 2 * (self.read * state).sum(-1).real


def convolved(u: Tensor, kernel: Tensor) -> Tensor:
    """Causal convolution of u (..., W) with kernel (..., W), which are broadcast against each other."""
    length = u.shape[-1]
    spectrum = torch.fft.rfft(u, 2 * length) * torch.fft.rfft(kernel, 2 * length)
    return torch.fft.irfft(spectrum, 2 * length)[..., :length]


def block_states(space: Space, u: Tensor, state: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    """States of filters (F, D) before and after each block.

    Args:
        space: (F, D, n).
        u: (b, t, W, D).
        state: complex (b, F, D, n) before the first block.
        starts: (b, t) bool; where true the state that enters the block is zero.

    Returns:
        Complex (b, t, F, D, n) that entered each block, and after it.
    """
    streams, blocks, window, channels = u.shape
    powers = torch.view_as_real(space.powers(0, window).flip(-1))  # (F, D, n, W, 2)
    per_channel = powers.permute(1, 3, 0, 2, 4)  # (D, W, F, n, 2)
    sums = u.permute(3, 0, 1, 2).flatten(1, 2) @ per_channel.flatten(2)
    added = torch.view_as_complex(sums.view(channels, streams, blocks, *per_channel.shape[2:]).contiguous())
    kept = (space.rate * window).exp()
    entered, left = [], []
    for block in range(blocks):
        state = state.masked_fill(starts[:, block, None, None, None], 0.0)
        entered.append(state)
        state = kept * state + added[:, :, block].permute(1, 2, 0, 3)
        left.append(state)
    return torch.stack(entered, 1), torch.stack(left, 1)


def filtered(space: Space, u: Tensor, state: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs of all tokens, (b, t, F, D, W), and the state after the last block; see `block_states`."""
    window = u.shape[2]
    entered, left = block_states(space, u, state, starts)
    within = convolved(u.permute(0, 1, 3, 2).unsqueeze(2), space.kernel(window))
    shown = torch.view_as_real(
        (space.read.unsqueeze(-1) * space.powers(1, window)).conj().resolve_conj().transpose(-1, -2)
    )
    states = torch.view_as_real(entered).permute(2, 3, 0, 1, 4, 5)  # (F, D, b, t, n, 2)
    carried = states.flatten(4).flatten(2, 3) @ shown.flatten(-2).transpose(-1, -2)
    return within + 2 * carried.unflatten(2, u.shape[:2]).permute(2, 3, 0, 1, 4), left[:, -1]


class DiagonalFilters(nn.Module):
    """F structured filters for each of D channels, with a state that is carried from segment to segment.

    Args:
        filters: of this rank.
        channels: D.
        states: N, even.
        split: 0 if the tensor parallel ranks share the filters, None if each has all of them.
        parallel: of the region in which they run.
    """

    def __init__(
        self, filters: int, channels: int, states: int, split: int | None, parallel: ModelParallelConfig
    ) -> None:
        super().__init__()
        rows, pairs = filters * channels, states // 2
        self.log_dt = nn.Parameter(torch.empty(rows))
        declare(self.log_dt, uniform(math.log(STEPS[0]), math.log(STEPS[1])), split)
        self.log_decay = nn.Parameter(torch.empty(rows, pairs))
        declare(self.log_decay, constant(math.log(FIRST_DECAY)), split)
        self.detuning = nn.Parameter(torch.empty(rows, pairs))  # of Im A from pi*0, pi*1, ...
        declare(self.detuning, constant(0.0), split)
        self.read = nn.Parameter(torch.empty(rows, states))
        declare(self.read, normal(math.sqrt(0.5)), split)
        self._shape, self._parallel = (filters, channels), None if split == 0 else parallel

    def space(self) -> Space:
        """The state space of each filter, (F, D, n)."""
        log_dt, log_decay, detuning, read = (
            widened(_of_region(value, self._parallel)).unflatten(0, self._shape)
            for value in (self.log_dt, self.log_decay, self.detuning, self.read)
        )
        pairs = detuning.shape[-1]
        harmonics = torch.arange(pairs, device=detuning.device, dtype=detuning.dtype)
        return Space.of(log_dt, log_decay, math.pi * harmonics + detuning, read.unflatten(-1, (pairs, 2)))

    def forward(self, u: Tensor, state: Tensor, starts: Tensor, last: bool) -> tuple[Tensor, Tensor]:
        """Filter u (b, t, W, D).

        Args:
            state: real (b, F, D, n, 2).
            starts: (b, t) bool.
            last: only the outputs at the last token of each block.

        Returns:
            (b, t, F, D, W), or (b, t, F, D) with `last`; and the state after the last block.
        """
        space, before = self.space(), torch.view_as_complex(widened(state).contiguous())
        u = widened(u)
        if last:
            _, left = block_states(space, u, before, starts)
            y, after = space.seen(left), left[:, -1]
        else:
            y, after = filtered(space, u, before, starts)
        return y, torch.view_as_real(after)


def _of_region(weight: Tensor, parallel: ModelParallelConfig | None) -> Tensor:
    return weight if parallel is None else shared(weight, parallel)


class UnstructuredFilters(nn.Module):
    """Filters exp(-alpha j) * (features(j) w) (as in Hyena, arXiv 2302.10866), which have no state to carry.

    They reach back to the start of the document, but not beyond the start of the segment.  Arguments as above.
    """

    def __init__(
        self, filters: int, channels: int, states: int, split: int | None, parallel: ModelParallelConfig
    ) -> None:
        super().__init__()
        rows = filters * channels
        self.log_alpha = nn.Parameter(torch.empty(rows))
        declare(self.log_alpha, uniform(*(math.log(alpha) for alpha in UNSTRUCTURED_DECAY)), split)
        self.mixture = nn.Parameter(torch.empty(rows, UNSTRUCTURED_FEATURES))
        declare(self.mixture, normal(1 / math.sqrt(UNSTRUCTURED_FEATURES)), split)
        self._shape, self._parallel = (filters, channels), None if split == 0 else parallel

    def kernel(self, length: int) -> Tensor:
        """(F, D, length)."""
        steps = torch.arange(length, device=self.mixture.device, dtype=widened(self.mixture).dtype)
        rates = 10_000.0 ** -(torch.arange(0, UNSTRUCTURED_FEATURES, 2, device=steps.device) / UNSTRUCTURED_FEATURES)
        angles = rates[:, None] * steps
        features = torch.cat([angles.cos(), angles.sin()])  # (features, length)
        fading = (-widened(_of_region(self.log_alpha, self._parallel)).exp()[:, None] * steps).exp()
        mixed = (widened(_of_region(self.mixture, self._parallel))[..., None] * features).sum(1)
        return (fading * mixed).unflatten(0, self._shape)

    def forward(self, u: Tensor, state: Tensor, starts: Tensor, last: bool) -> tuple[Tensor, Tensor]:
        """As `DiagonalFilters`; the state is given back as it is."""
        u = widened(u)
        blocks, window = u.shape[1:3]
        kernel = self.kernel(blocks * window)
        # around lag m*W, the lags -(W-1) .. W-1 between tokens of two blocks, wrapped to 2W
        padded = functional.pad(kernel, (window, 0)).unfold(-1, 2 * window, window)  # lags (m-1)W .. (m+1)W - 1
        spectra = torch.fft.rfft(padded.roll(-window, -1))  # (F, D, t, W + 1)
        inputs = torch.fft.rfft(u.permute(0, 1, 3, 2), 2 * window).unsqueeze(2)  # (b, t, 1, D, W + 1)
        document = starts.cumsum(1)
        rows = []
        for block in range(blocks):
            same = (document[:, : block + 1] == document[:, block : block + 1])[:, :, None, None, None]
            lags = spectra[:, :, : block + 1].flip(2).movedim(2, 0)  # (blocks, F, D, W + 1), the farthest first
            rows.append((inputs[:, : block + 1] * lags * same).sum(1))
        y = torch.fft.irfft(torch.stack(rows, 1), 2 * window)[..., :window]
        return (y[..., -1] if last else y), state
