"""Reads words of a formal language through a whole network, and counts what is legal: see `OracleTally`."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import cast

import torch
from torch import Tensor

from brt_dist.data.objectives.oracle import Oracle
from brt_dist.data.reader import Documents, Segments
from brt_dist.data.stream_schedule import StepReads
from brt_dist.evaluation.oracle_tally import OracleScores, OracleTally, word_ends
from brt_dist.model.memory import Memory
from brt_dist.model.model import BlockRecurrentModel, full_logits, token_losses
from brt_dist.model.oracle_heads import OracleHeads


class OracleReading:
    """Stands in for a network, and judges it at the same time.

    Args:
        oracle: knows the language.
        network: with the heads of an oracle, in evaluation mode.
        documents: words of its language.
        streams: read side by side.
        until: the end of the evaluation.
    """

    def __init__(
        self, oracle: Oracle, network: BlockRecurrentModel, documents: Documents, streams: int, until: ExitStack
    ) -> None:
        self._oracle, self._network, self._documents = oracle, network, documents
        self._heads, self._hidden = cast(OracleHeads, network.final_norm.oracle), list[Tensor]()
        self._device = next(network.parameters()).device
        self._tally = OracleTally(oracle, streams, self._device)
        watching = network.final_norm.register_forward_hook(lambda module, given, out: self._hidden.append(out))
        until.callback(watching.remove)

    def read(
        self, plan: StepReads, segments: Segments, memory: Sequence[Memory], starts: Tensor
    ) -> tuple[Tensor, list[Memory]]:
        """Nats of each token (b, N) and the new memory, as the network gives them.

        Args:
            plan, segments: what is read, with `Segments.beginnings`.
            memory: of each layer.
            starts: (b, N/W) bool, blocks before which memory is blank.
        """
        asked = self._oracle.examples(0, plan, segments)
        tokens, target, mask = map(self._tensor, (asked.input, asked.target, asked.mask))
        logits, after = self._network(tokens, memory, starts)
        hidden = torch.cat(self._hidden)
        self._hidden.clear()
        predicted = full_logits(logits, self._tally.vocab_size)[mask].argmax(-1)
        word_starts, ends, labels = map(self._tensor, (plan.starts, word_ends(plan, self._documents), asked.labels))
        self._tally.add(slice(None), predicted, mask, labels, self._heads(hidden), word_starts, ends)
        return token_losses(logits, target), after

    def result(self) -> OracleScores:
        """What was found."""
        return self._tally.result()

    def _tensor(self, values: object) -> Tensor:
        return torch.as_tensor(values).to(self._device)
