"""How often large runs are interrupted, from the literature."""

from dataclasses import dataclass

_HOURS = 24
_GPUS_OF_A_NODE = 8


@dataclass(frozen=True)
class FailureRate:
    """Interruptions that nobody planned.

    Attributes:
        per_gpu_hour: how many in an hour, by GPU.
        source: where the figures come from.
    """

    per_gpu_hour: float
    source: str

    def hours_between(self, gpus: int) -> float:
        """Mean time between failures of a run on some GPUs, any of which ends it; infinite at rate 0."""
        return 1 / (self.per_gpu_hour * gpus) if self.per_gpu_hour else float("inf")


RATES = {
    "llama3": FailureRate(
        419 / (54 * _HOURS * 16384),
        "419 unexpected interruptions in 54 days of pretraining on 16,384 H100s (arXiv 2407.21783, section 3.3.4)",
    ),
    "opt": FailureRate(
        (35 + 70) / (60 * _HOURS * 992),
        "at least 35 manual and an estimated 70 automatic restarts in 2 months on 992 A100s "
        "(arXiv 2205.01068, sections 2.4 and 2.5)",
    ),
    "rsc1": FailureRate(
        6.50 / (1000 * _HOURS * _GPUS_OF_A_NODE),
        "6.50 failures per 1,000 node-days of the 16,000 A100s of Meta's RSC-1, over 11 months (arXiv 2410.21680)",
    ),
    "rsc2": FailureRate(
        2.34 / (1000 * _HOURS * _GPUS_OF_A_NODE),
        "2.34 failures per 1,000 node-days of the 8,000 A100s of Meta's RSC-2, over 11 months (arXiv 2410.21680)",
    ),
}
