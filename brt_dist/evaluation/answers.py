"""How many targets a model predicts correctly, for objectives other than the next token."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

from brt_dist.data.stream_schedule import StepReads
from brt_dist.model.linear import gather
from brt_dist.parallel.engine import Engine
from brt_dist.parallel.micro_batches import StepInput


@dataclass
class Found:
    """Observer of an evaluation step (see `Engine`) that counts the targets whose likeliest token is right.

    Attributes:
        vocabulary: V.
        right: float64 scalar, the count of this rank's streams; updated in place.
    """

    vocabulary: int
    right: Tensor

    wants_logits: ClassVar[bool] = True

    def __call__(self, micro_batch: int, scores: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        logits = gather(scores.transpose(0, 1)[mask])[:, : self.vocabulary].float()  # of the targets alone
        self.right += (logits.argmax(-1) == target[mask]).sum()
        return functional.cross_entropy(logits, target[mask], reduction="sum")


class Answers:
    """The tally of an evaluation (see `evaluate`) of the share of right answers."""

    def __init__(self, engine: Engine) -> None:
        right = torch.zeros((), dtype=torch.float64, device=engine.device.torch)
        self._found = Found(engine.config.model.vocab_size or 0, right)
        self._ranks = engine.layout.tensor

    def observer(self, plan: StepReads, step: StepInput) -> Found:
        return self._found

    def results(self, tokens: int) -> dict[str, Any]:
        right = self._found.right
        dist.all_reduce(right)  # only last stages have values, the same on all their tensor parallel ranks
        return {"accuracy": float(right) / self._ranks / max(tokens, 1)}
