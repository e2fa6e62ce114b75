"""Plans of the recipes in examples/ on 8 to 4,096 H100s, for docs/scaling.md.

python -m benchmarks.recipes            search all layouts, and put the table into docs/scaling.md (minutes)
python -m benchmarks.recipes --only 7B  print the rows of one model
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

from brt_dist.config.loading import load
from brt_dist.config.schema import Config
from brt_dist.files import write_atomic
from brt_dist.planning.devices import device_spec
from brt_dist.planning.layout_plan import LayoutPlan, Planner
from brt_dist.planning.search import search
from launch.views.plan import plan_row

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "scaling.md"
BEGIN, END = "<!-- plans: python -m benchmarks.recipes -->", "<!-- end of plans -->"
# name: file in examples/, and size of the vocabulary
RECIPES = {
    "150M": ("scale_150m", 32768),
    "650M": ("scale_650m", 32768),
    "1.3B": ("scale_1b3", 32768),
    "7B": ("scale_7b", 131072),
    "70B": ("scale_70b", 131072),
    "400B": ("scale_400b", 131072),
}
GPUS = (8, 64, 512, 4096)
HEAD = ("model", "H100s", "layout", "memory", "step", "MFU", "time", "cost")


def recipe(name: str) -> Config:
    """The config of a recipe, with a vocabulary."""
    file, vocabulary = RECIPES[name]
    return load(
        ROOT / "examples" / f"{file}.yaml", [f"model.vocab_size={vocabulary}", "data.dataset=data/train"]
    ).config


def planner(name: str) -> Planner:
    return Planner(recipe(name), device_spec("h100"))


def row(name: str, gpus: int, plan: LayoutPlan | None) -> str:
    """A row of the table; None: nothing fits."""
    cells = ("none fits", *[""] * 5) if plan is None else plan_row(plan)
    return f"| {' | '.join((name, f'{gpus:,}', *cells))} |"


def rows(name: str) -> Iterator[str]:
    """The fastest plan of a recipe for each number of GPUs that its streams can use."""
    planned = planner(name)
    for gpus in GPUS:
        found = search(planned, gpus)
        if found.plans or found.oversize:
            yield row(name, gpus, found.plans[0] if found.plans else None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=RECIPES, help="only print the rows of this model")
    given = parser.parse_args()
    if given.only:
        print("\n".join(rows(given.only)))
        return
    lines = [f"| {' | '.join(HEAD)} |", "|---|---:|---|---:|---:|---:|---:|---:|"]
    lines += [line for name in RECIPES for line in rows(name)]
    before, rest = DOCUMENT.read_text().split(BEGIN)
    _, after = rest.split(END)
    write_atomic(DOCUMENT, "\n".join([f"{before}{BEGIN}", *lines, f"{END}{after}"]))


if __name__ == "__main__":
    main()
