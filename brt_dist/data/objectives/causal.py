"""Language models: the next token of each token, in documents read from their beginning."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

from brt_dist.data.objectives.base import Examples, Objective
from brt_dist.data.reader import Segments
from brt_dist.data.stream_schedule import StepReads
from brt_dist.kinds import MIXERS

if TYPE_CHECKING:
    from brt_dist.config.schema import Config


class NextToken(Objective):
    """The next token of the same document; the last of a document has none."""

    purpose: ClassVar[str] = "to predict the next token"
    continues_text: ClassVar[bool] = True

    @classmethod
    def broken_rules(cls, config: "Config") -> Iterator[str]:
        yield from super().broken_rules(config)
        for name, mixer in config.model.mixers.items():
            if not mixer.is_causal:
                yield (
                    f"model.mixers.{name}: {mixer.kind} is not causal, because {mixer.reads_ahead}; a language model "
                    "must not know what it predicts; "
                    f"nearest: model.mixers.{name}.kind={next(kind for kind in MIXERS if MIXERS[kind].is_causal)}, or "
                    "model.objective=mlm, to train an encoder"
                )

    def count(self, plan: StepReads) -> int:
        return plan.loss_tokens

    def examples(self, number: int, plan: StepReads, segments: Segments) -> Examples:
        return Examples(segments.input, segments.target, segments.mask)
