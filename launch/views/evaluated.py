"""What `brt eval` found: as JSON, as events, as tables."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import click

from brt_dist.events import EvaluationEvent, LayerStatistics
from brt_dist.kinds import MIXERS
from pipelines.tables import show, table

if TYPE_CHECKING:
    from brt_dist.evaluation.score import Score
    from brt_dist.evaluation.texts import TextSize

_LANGUAGE = {
    "legal": "legal predictions",
    "legal_words": "words with only legal predictions",
    "state_accuracy": "tokens with the right state",
    "stack_accuracy": "tokens with the right stack",
}


@dataclass(frozen=True)
class Evaluated:
    """What was found on one source of data.

    Attributes:
        unjudged: why the legality of an oracle model's predictions was not measured; else None.
    """

    name: str
    size: "TextSize | None"
    scores: "dict[str, Score]"
    seconds: float
    unjudged: str | None = None

    def to_json(self) -> dict[str, Any]:
        carried = self.scores["carried"]
        found: dict[str, Any] = {
            "data": self.name,
            "documents": len(carried.document_nats),
            "tokens": carried.tokens,
            "seconds": round(self.seconds, 3),
        }
        if self.size is not None:
            found |= {"text_bytes": self.size.text_bytes, "words": self.size.words}
        if self.unjudged is not None:
            found["legality_left_out"] = self.unjudged
        if carried.layers:
            found["layers"] = [{"layer": one.layer, **one.values} for one in carried.layers]
        for memory, score in self.scores.items():
            found[memory] = {
                "nats": score.nats,
                "bits_per_token": score.bits_per_token,
                "standard_error": score.standard_error,
                **self.of_text(score),
                **of_language(score),
                "positions": [asdict(position) for position in score.positions],
                "documents": [
                    {"nats": float(nats), "tokens": int(tokens)}
                    for nats, tokens in zip(score.document_nats, score.document_tokens, strict=True)
                ],
            }
        return found

    def of_text(self, score: "Score") -> dict[str, float]:
        """The measures that do not depend on the tokenizer, if the text is known."""
        if self.size is None or not self.size.text_bytes or not self.size.words:
            return {}
        return {
            "bits_per_byte": score.bits_per_byte(self.size.text_bytes),
            "word_perplexity": score.word_perplexity(self.size.words),
        }


def of_language(score: "Score") -> dict[str, Any]:
    """How well an oracle model predicts its language, if that was measured."""
    return {} if score.oracle is None else asdict(score.oracle)


def events_of(found: Sequence[Evaluated], step: int) -> list[EvaluationEvent]:
    """The results as events, like those of training."""
    return [
        EvaluationEvent(
            step=step,
            dataset=one.name,
            memory=memory,
            loss=score.nats / score.tokens,
            bits_per_token=score.bits_per_token,
            tokens=score.tokens,
            positions=score.positions,
            layers=score.layers,
            seconds=one.seconds,
            **of_language(score),
        )
        for one in found
        for memory, score in one.scores.items()
    ]


def show_evaluated(facts: Mapping[str, Any], found: Sequence[Evaluated]) -> None:
    """Print the results on standard output."""
    click.echo(f"{facts['source']}  window {facts['window']}  segment {facts['segment']}")
    for one in found:
        carried = one.scores["carried"]
        click.echo(f"\n{one.name}: {len(carried.document_nats):,} documents, {carried.tokens:,} predicted tokens")
        head = ("", *(f"memory {memory}" if " " not in memory else memory for memory in one.scores))
        rows = [(label, *map(_number, values)) for label, values in _rows(one)]
        if len(one.scores) > 1:
            lost = [f"{score.bits_per_token - carried.bits_per_token:+.4f}" for score in one.scores.values()]
            rows.insert(1, ("lost by clearing", "", *lost[1:]))
        if carried.standard_error is not None:
            rows.append(("± standard error", *(f"{score.standard_error:.4f}" for score in one.scores.values())))
        show(table(head, rows, right=head[1:]))
        if one.unjudged is not None:
            click.echo(f"no share of legal predictions: {one.unjudged}")
        click.echo("")
        head = ("position in the document", "tokens", *one.scores)
        show(table(head, list(_position_rows(one)), right=head[1:]))
        if carried.layers:
            click.echo("")
            head = ("in layers with a state", *(f"layer {layer.layer}" for layer in carried.layers))
            show(table(head, list(_layer_rows(carried.layers)), right=head[1:]))


def _number(value: float) -> str:
    return f"{value:.4f}" if value < 1e4 else f"{value:.4g}"


def _position_rows(one: Evaluated) -> Iterator[tuple[str, ...]]:
    for same in zip(*(score.positions for score in one.scores.values()), strict=True):
        first = same[0]
        end = "" if first.end is None else f"{first.end - 1:,}"
        bits = (f"{position.loss / math.log(2):.4f}" for position in same)
        yield f"{first.begin:,} to {end}".rstrip(), f"{first.tokens:,}", *bits


def _layer_rows(layers: Sequence[LayerStatistics]) -> Iterator[tuple[str, ...]]:
    declared = {name: how for mixer in MIXERS.values() for name, how in (mixer.statistics | mixer.watched).items()}
    for name, how in declared.items():
        values = [layer.values.get(name) for layer in layers]
        if any(value is not None for value in values):
            yield f"{how.label} ({how.axis})", *("-" if value is None else _number(value) for value in values)


def _rows(one: Evaluated) -> Iterator[tuple[str, list[float]]]:
    scores = list(one.scores.values())
    yield "bits/token", [score.bits_per_token for score in scores]
    of_text = [one.of_text(score) for score in scores]
    if all(of_text):
        yield "bits/byte", [values["bits_per_byte"] for values in of_text]
        yield "word perplexity", [values["word_perplexity"] for values in of_text]
    judged = [of_language(score) for score in scores]
    if all(judged):
        for name, label in _LANGUAGE.items():
            yield label, [values[name] for values in judged]
