"""The table: bits of each row with memory carried and cleared, over seeds, beside the paper's figures."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import mean, stdev
from typing import Any

from launch.reproduce.cost import RowCost, step_ratio
from launch.reproduce.kit import Figure
from launch.reproduce.training import Trained

REFERENCE = "Slide:13L"  # the paper's fair baseline; the first row of tables that lack it


@dataclass(frozen=True)
class TableRow:
    """A row of the table; bits are per token, or per byte where tokens are bytes.

    Attributes:
        name: of the row.
        parameters: token embedding included.
        seeds: how many were trained to the end and measured.
        carried: bits with memory carried, the mean over seeds.
        spread: of `carried`, the standard deviation over seeds; None for a single one.
        document_error: standard error of `carried` over documents, the mean over seeds.
        cleared: bits with memory cleared at every segment, the mean over seeds.
        difference: of `carried` from the reference row, the mean over seeds.
        difference_spread: its standard deviation over seeds.
        paper: the paper's bits.
        paper_difference: from its reference row.
        sureness: of the paper's bits.
        step_ratio: planned time of a step, relative to the reference row.
        paper_step_ratio: the paper's.
    """

    name: str
    parameters: int
    seeds: int
    carried: float | None
    spread: float | None
    document_error: float | None
    cleared: float | None
    difference: float | None
    difference_spread: float | None
    paper: float | None
    paper_difference: float | None
    sureness: str | None
    step_ratio: float | None
    paper_step_ratio: float | None


@dataclass(frozen=True)
class Results:
    """A whole table.

    Attributes:
        title: what was trained on what.
        reference: the row that differences are from.
        unit: what bits are per: `token` or `byte`.
        tokens: read in training by each model.
        held_out: documents and tokens that bits were measured on.
    """

    title: str
    reference: str
    unit: str
    tokens: int
    held_out: tuple[int, int]
    rows: tuple[TableRow, ...]

    def to_json(self) -> dict[str, Any]:
        documents, tokens = self.held_out
        return {
            "title": self.title,
            "reference": self.reference,
            "unit": self.unit,
            "training_tokens": self.tokens,
            "held_out_documents": documents,
            "held_out_tokens": tokens,
            "rows": [asdict(row) for row in self.rows],
        }


def results(
    title: str,
    trained: Sequence[Trained],
    costs: Mapping[str, RowCost],
    paper: Mapping[str, Figure],
    paper_steps: Mapping[str, Figure],
    unit: str = "token",
) -> Results:
    """Put the measurements together.

    Args:
        title: of the table.
        trained: all seeds of all rows.
        costs: the plan by row, in the order of the table.
        paper: the paper's bits by row.
        paper_steps: the paper's step times by row.
        unit: what a token of the data is.
    """
    found = {name: {one.seed: one.found for one in trained if one.row == name and one.found} for name in costs}
    reference = REFERENCE if REFERENCE in costs else next(iter(costs))
    one = next((of_seed for of_row in found.values() for of_seed in of_row.values()), None)
    plan = costs[reference].plan
    rows = []
    for name, cost in costs.items():
        seeds = found[name]
        carried = {seed: of_seed["carried"]["bits_per_token"] for seed, of_seed in seeds.items()}
        errors = [of_seed["carried"]["standard_error"] for of_seed in seeds.values()]
        apart = [
            bits - found[reference][seed]["carried"]["bits_per_token"]
            for seed, bits in carried.items()
            if seed in found[reference]
        ]
        figure, step = paper.get(name), paper_steps.get(name)
        rows.append(
            TableRow(
                name=name,
                parameters=cost.parameters,
                seeds=len(seeds),
                carried=_mean(carried.values()),
                spread=_spread(carried.values()),
                document_error=None if None in errors else _mean(errors),
                cleared=_mean(of_seed["cleared"]["bits_per_token"] for of_seed in seeds.values()),
                difference=_mean(apart),
                difference_spread=_spread(apart),
                paper=figure.value if figure else None,
                paper_difference=figure.value - paper[reference].value if figure and reference in paper else None,
                sureness=figure.sureness if figure else None,
                step_ratio=step_ratio(costs, name, reference),
                paper_step_ratio=step.value if step else None,
            )
        )
    held_out = (one["documents"], one["tokens"]) if one else (0, 0)
    return Results(title, reference, unit, plan.steps * plan.tokens, held_out, tuple(rows))


def markdown(found: Results, note: str | None = None) -> str:
    """The table as Markdown.

    Args:
        found: the results.
        note: what else the paper says.
    """
    documents, tokens = found.held_out
    head = (
        "row", "parameters", "seeds", "carried", "± seeds", "± documents", "cleared", f"vs {found.reference}",
        "± seeds", "paper", f"paper, vs {found.reference}", "how sure", "step, planned", "step, paper",
    )  # fmt: skip
    lines = [
        f"# {found.title}",
        "",
        f"Bits per {found.unit} on {documents:,} whole held-out documents ({tokens:,} tokens), after {found.tokens:,} "
        "tokens of training, with memory carried and with memory cleared at every segment.",
        "",
        f"| {' | '.join(head)} |",
        f"|---|{'---:|' * (len(head) - 1)}",
        *(f"| {' | '.join(_cells(row))} |" for row in found.rows),
        "",
        "± seeds: standard deviation over seeds. ± documents: standard error over held-out documents, within a seed. "
        "The paper's figures are of 150 million parameters and 65 billion tokens; at a smaller scale only the signs of "
        "differences compare. How sure each is: reproduce/expected.yaml. Steps are relative to the reference row.",
    ]
    if note is not None:
        lines += ["", f"The paper: {note}."]
    return "\n".join(lines) + "\n"


def _cells(row: TableRow) -> tuple[str, ...]:
    return (
        row.name,
        f"{row.parameters:,}",
        str(row.seeds),
        _number(row.carried, ".4f"),
        _number(row.spread, ".4f"),
        _number(row.document_error, ".4f"),
        _number(row.cleared, ".4f"),
        _number(row.difference, "+.4f"),
        _number(row.difference_spread, ".4f"),
        _number(row.paper, ".4g"),
        _number(row.paper_difference, "+.3f"),
        row.sureness or "-",
        _number(row.step_ratio, ".2f"),
        _number(row.paper_step_ratio, ".2f"),
    )


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _mean(values: Iterable[float]) -> float | None:
    given = list(values)
    return mean(given) if given else None


def _spread(values: Iterable[float]) -> float | None:
    given = list(values)
    return stdev(given) if len(given) > 1 else None
