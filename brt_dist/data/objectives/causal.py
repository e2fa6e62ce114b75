"""Language models: the next token of each token, in documents read from their beginning."""

from typing import ClassVar

from brt_dist.data.objectives.base import Examples, Objective
from brt_dist.data.reader import Segments
from brt_dist.data.stream_schedule import StepReads


class NextToken(Objective):
    """The next token of the same document; the last of a document has none."""

    purpose: ClassVar[str] = "to predict the next token"
    continues_text: ClassVar[bool] = True

    def count(self, plan: StepReads) -> int:
        return plan.loss_tokens

    def examples(self, number: int, plan: StepReads, segments: Segments) -> Examples:
        return Examples(segments.input, segments.target, segments.mask)
