"""How well a model knows a bounded context-free language: legal predictions, and what its heads read (2112.09174)."""

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

from brt_dist.data.objectives.oracle import Oracle
from brt_dist.data.reader import Documents
from brt_dist.data.stream_schedule import StepReads
from brt_dist.model.linear import gather
from brt_dist.model.model import FINAL_NORM
from brt_dist.parallel.engine import Engine, StepInput
from brt_dist.parallel.step_input import in_rows


@dataclass(frozen=True)
class OracleScores:
    """Shares of what was read in an evaluation.

    Attributes:
        legal: of predicted tokens, those that could come next.
        legal_words: of documents read to their end, those predicted legally throughout.
        state_accuracy: of tokens, those after which the heads tell the machine's state.
        stack_accuracy: the same for all slots of its stack.
    """

    legal: float
    legal_words: float
    state_accuracy: float
    stack_accuracy: float


class Legality:
    """The tally of an evaluation (see `evaluate`) with an oracle, and its observer.

    Args:
        objective: knows the language.
        engine: the model, whose heads are looked at.
        dataset: words.
        until: the end of the evaluation.
    """

    wants_logits: ClassVar[bool] = True

    def __init__(self, objective: Oracle, engine: Engine, dataset: Documents, until: ExitStack) -> None:
        self._layout, self._device = engine.layout, engine.device.torch
        self._letters = torch.from_numpy(objective.letters()).to(self._device)
        self._lengths = np.asarray(dataset.lengths)
        # of each stream, whether a prediction in its present word was not legal
        self._spoiled = torch.zeros(len(self._layout.rows), dtype=torch.bool, device=self._device)
        self._shares = torch.zeros(len(OracleScores.__dataclass_fields__), 2, dtype=torch.float64, device=self._device)
        self._read: list[tuple[Tensor, Tensor]] = []  # by the heads, of the micro-batch under way
        for name, module in engine.stage.logical_modules():
            if name == FINAL_NORM:
                heads = cast(torch.nn.Module, module.oracle)
                until.callback(heads.register_forward_hook(lambda *call: self._read.append(call[-1])).remove)

    def observer(self, plan: StepReads, step: StepInput) -> "Legality":
        mine = list(self._layout.local_streams)
        length = self._lengths[plan.document]
        ends = (plan.length > 0) & (plan.offset + plan.length >= length) & (length > 1)  # one token predicts none
        self._labels = step.labels
        self._starts, self._ends = (
            torch.from_numpy(in_rows(blocks[mine], self._layout, False)).to(self._device)
            for blocks in (plan.starts, ends)
        )
        return self

    def __call__(self, micro_batch: int, scores: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        size = self._layout.micro_batch
        rows = slice(micro_batch * size, (micro_batch + 1) * size)
        told = cast(Tensor, self._labels)[rows]
        logits = gather(scores.transpose(0, 1)[mask])[:, : len(self._letters)].float()
        is_legal = (self._letters[logits.argmax(-1)] & told[..., 0][mask]) != 0
        words = self._words(rows, torch.zeros_like(mask).masked_scatter(mask, ~is_legal))
        of_state, of_stack = (torch.cat(parts).transpose(0, 1).argmax(-1) for parts in zip(*self._read, strict=True))
        self._read.clear()
        known = told[..., 1] >= 0
        state, stack = of_state == told[..., 1], (of_stack == told[..., 2:]).all(-1)
        found = is_legal, words, state[known], stack[known]
        self._shares[:, 0] += torch.stack([one.sum() for one in found])
        self._shares[:, 1] += torch.tensor([one.numel() for one in found], device=self._device)
        return functional.cross_entropy(logits, target[mask], reduction="sum")

    def _words(self, rows: slice, is_illegal: Tensor) -> Tensor:
        """Whether each word that ends in the segments (b, N) was predicted legally."""
        found, starts, ends = [], self._starts[rows], self._ends[rows]
        spoiled, blocks = self._spoiled[rows], is_illegal.unflatten(1, (starts.shape[1], -1)).any(-1)
        for block in range(starts.shape[1]):
            spoiled = (spoiled & ~starts[:, block]) | blocks[:, block]
            found.append(~spoiled[ends[:, block]])
        self._spoiled[rows] = spoiled
        return torch.cat(found)

    def results(self, tokens: int) -> dict[str, Any]:
        dist.all_reduce(self._shares)  # only last stages have values, the same on all their tensor parallel ranks
        return {"oracle": OracleScores(*((right / max(among, 1.0)) for right, among in self._shares.tolist()))}
