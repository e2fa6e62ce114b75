"""Observes an evaluation of a model with an oracle: see `OracleTally`."""

from contextlib import ExitStack
from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from torch.nn import functional

from brt_dist.data.objectives.oracle import Oracle
from brt_dist.data.reader import Documents
from brt_dist.data.stream_schedule import StepReads
from brt_dist.evaluation.oracle_tally import OracleTally, word_ends
from brt_dist.model.linear import gather
from brt_dist.model.model import FINAL_NORM
from brt_dist.parallel.engine import Engine
from brt_dist.parallel.micro_batches import StepInput
from brt_dist.parallel.step_input import in_rows


class Legality:
    """The tally of an evaluation (see `evaluate`) with an oracle, and its observer.

    Args:
        objective: knows the language.
        engine: the model, whose heads are observed.
        dataset: words.
        until: the end of the evaluation.

    Attributes:
        objective: as given.
        tally: of what was seen so far.
    """

    wants_logits: ClassVar[bool] = True

    def __init__(self, objective: Oracle, engine: Engine, dataset: Documents, until: ExitStack) -> None:
        self.objective, self._dataset = objective, dataset
        self._layout, self._device = engine.layout, engine.device.torch
        self.tally = OracleTally(objective, len(self._layout.rows), self._device)
        self._read: list[tuple[Tensor, Tensor]] = []  # by the heads, for the current micro-batch
        for name, module in engine.stage.logical_modules():
            if name == FINAL_NORM:
                heads = cast(torch.nn.Module, module.oracle)
                until.callback(heads.register_forward_hook(lambda *call: self._read.append(call[-1])).remove)

    def observer(self, plan: StepReads, step: StepInput) -> "Legality":
        mine = list(self._layout.local_streams)
        self._labels = step.labels
        self._starts, self._ends = (
            torch.from_numpy(in_rows(blocks[mine], self._layout, False)).to(self._device)
            for blocks in (plan.starts, word_ends(plan, self._dataset))
        )
        return self

    def __call__(self, micro_batch: int, scores: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        size = self._layout.micro_batch
        rows = slice(micro_batch * size, (micro_batch + 1) * size)
        logits = gather(scores.transpose(0, 1)[mask])[:, : self.tally.vocab_size].float()
        of_state, of_stack = (torch.cat(parts) for parts in zip(*self._read, strict=True))
        self._read.clear()
        labels = cast(Tensor, self._labels)[rows]
        predicted, places = logits.argmax(-1), (self._starts[rows], self._ends[rows])
        self.tally.add(rows, predicted, mask, labels, (of_state, of_stack), *places)
        return functional.cross_entropy(logits, target[mask], reduction="sum")

    def results(self, tokens: int) -> dict[str, Any]:
        return {"oracle": self.tally.result()}
