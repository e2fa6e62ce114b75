"""`brt reproduce`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from brt_dist.errors import ConfigError
from launch.commands.arguments import LocalPath, json_option
from launch.reproduce import kit

if TYPE_CHECKING:
    from launch.reproduce.results import Results


@click.command()
@click.argument("table", metavar="TABLE")
@click.argument("settings", nargs=-1, metavar="[key=value ...]")
@click.option("--scale", default="tiny", show_default=True, metavar="NAME", help="tiny, small or paper.")
@click.option("--data", "data_name", default="books", show_default=True, metavar="NAME",
              help="books (PG19), books-bytes, papers (arXiv) or code (repositories).")  # fmt: skip
@click.option("--dataset", type=LocalPath(file_okay=False),
              help="A folder with the datasets train/ and validation/ to use.")  # fmt: skip
@click.option(
    "--seeds", type=click.IntRange(1), default=1, show_default=True, help="Number of seeds to train each row with."
)
@click.option("--only", multiple=True, metavar="ROW", help="Only these rows, as Slide:13L or 'Rec:*'; may be repeated.")
@click.option(
    "--equal",
    is_flag=True,
    help="Give all rows as many parameters as Rec:fixed:skip, by changing the width of the MLPs.",
)
@click.option(
    "--documents", type=click.IntRange(1), help="Measure on this many held-out documents, from the beginning."
)
@click.option("--device", metavar="NAME|FILE", help="Device to plan for, as in brt plan.  [default: h100; tiny: cpu]")
@click.option("--out", type=LocalPath(file_okay=False), default=Path("runs/reproduce"),
              show_default=True, help="Folder of data, runs and results.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Plan and check all rows; write and start nothing.")
@click.option("--yes", is_flag=True, help="Start a table at scale `paper`; the plan states its price.")
@json_option
def reproduce(
    table: str,
    settings: tuple[str, ...],
    scale: str,
    data_name: str,
    dataset: Path | None,
    seeds: int,
    only: tuple[str, ...],
    equal: bool,
    documents: int | None,
    device: str | None,
    out: Path,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> int:
    """Train the paper's table or an ablation, and compare with the paper's figures.

    TABLE is table1, states, window, position or count: a folder of reproduce/ with a config for each row.  Settings
    change all rows.

    \b
      brt reproduce table1 --scale paper --data code --dry-run
      brt reproduce table1 --scale tiny --only Slide:13L --only Rec:fixed:skip --seeds 2
      brt reproduce states --scale small optimizer.learning_rate=0.0005

    First comes the plan: what each row needs and costs.  Then each row is trained as a sweep over seeds, and measured
    on whole held-out documents, with memory carried and with memory cleared at every segment.  OUT/TABLE-SCALE-DATA
    gets table.md, table.json and table.png.  Run the same command again to continue.

    The scales tiny and small read corpora that any machine can make (`brt data corpus`), unless --dataset is given; the
    recipes of the paper's data are in reproduce/data.
    """
    from rich.console import Console

    from launch.reproduce.cost import cost_of, cost_text, price_text, short_name
    from launch.reproduce.equal import with_equal_parameters
    from launch.reproduce.texts import datasets, vocabulary

    _known("table", table, kit.tables())
    _known("scale", scale, kit.scales())
    _known("data", data_name, kit.recipes())
    recipe, rows, console = kit.recipe(data_name), kit.rows(table, scale, only), Console(stderr=True)
    if equal:
        rows = with_equal_parameters(rows, scale, settings)
    size = vocabulary(recipe, scale, dataset)
    device = device or ("cpu" if rows[0].config(settings).run.device == "cpu" else "h100")
    costs = {row.name: cost_of(row, size, device, settings) for row in rows}
    planned = cost_text(list(costs.values()), seeds)
    hours = seeds * sum(cost.device_hours for cost in costs.values())
    plan: dict[str, Any] = {
        "table": table,
        "scale": scale,
        "data": data_name,
        "equal": equal,
        "seeds": seeds,
        "device_hours": hours,
        "plan": {name: cost.to_json() for name, cost in costs.items()},
    }
    if dry_run:
        click.echo(json.dumps(plan) if as_json else planned)
        return 0
    click.echo(planned, err=True)
    if scale == "paper" and not yes:
        first = next(iter(costs.values())).plan
        raise ConfigError(
            f"not started: {table} at the paper's scale takes {hours:,.0f} {short_name(first)} hours"
            f"{price_text(list(costs.values()), seeds)} by the plan; --yes starts it, --scale small is far cheaper"
        )
    train, validation = datasets(data_name, recipe, scale, dataset, out / "data")
    segment = kit.base(scale).data.segment  # the same for all rows
    held_out = f"{documents or 'all'} documents of {validation}, segments of {segment}"
    places = [f"data.dataset={json.dumps(str(train))}", f"data.validation={json.dumps(str(validation))}"]

    def measure(run: Path) -> Mapping[str, Any]:
        return _measure(run, validation, segment, documents)

    from launch.reproduce.results import markdown, results
    from launch.reproduce.training import train_rows

    folder = out / f"{table}-{scale}-{data_name}{'-equal' if equal else ''}"
    trained, code = train_rows(rows, [*places, *settings], seeds, folder, measure, held_out, console)
    if all(one.found is None for one in trained):
        click.echo("\nno model is trained and measured yet; run the same command again to continue", err=True)
        if as_json:
            click.echo(json.dumps({**plan, "rows": [], "folder": str(folder)}))
        return code
    column, steps = (kit.expected(name) if table == "table1" else {} for name in (recipe.column, "step_time"))
    title = f"{table}, scale {scale}, data {data_name}{', equal parameters' if equal else ''}"
    unit = "byte" if recipe.column.endswith("_bytes") else "token"
    found = results(title, trained, costs, column, steps, unit)
    _write(folder, found, markdown(found, kit.claim(table)), plan, as_json)
    return code


def _write(folder: Path, found: "Results", text: str, plan: Mapping[str, Any], as_json: bool) -> None:
    """Write the table and its plot into the folder, and print it."""
    from brt_dist.files import write_atomic
    from launch.reproduce.plot import plot

    told = {**plan, **found.to_json()}
    write_atomic(folder / "table.md", text)
    write_atomic(folder / "table.json", json.dumps(told, indent=1) + "\n")
    plot(folder / "table.png", found)
    if as_json:
        click.echo(json.dumps({**told, "folder": str(folder)}))
    else:
        click.echo(f"{text}\ntable     {folder / 'table.md'}\nfigures   {folder / 'table.json'}")
        click.echo(f"plot      {folder / 'table.png'}")


def _known(what: str, name: str, names: tuple[str, ...]) -> None:
    import difflib

    if name not in names:
        near = difflib.get_close_matches(name[:80], names, n=1)
        raise ConfigError(
            f"unknown {what} {name[:80]!r}; known: {', '.join(names)}" + (f"; nearest: {near[0]}" if near else "")
        )


def _measure(run: Path, validation: Path, segment: int, documents: int | None) -> dict[str, Any]:
    """What `brt eval` finds on whole held-out documents."""
    from launch.commands.arguments import quiet_libraries

    quiet_libraries()
    from launch.commands.evaluating import Wanted, in_this_process

    places = (str(validation),)
    wanted = Wanted(str(run), None, None, "auto", places, documents, segment, 8, cleared=True, parts=False)
    return in_this_process(wanted).results[0].to_json()
