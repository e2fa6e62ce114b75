"""`python -m tests.scale`: what three large layouts cost, counted on the meta device, as the table of docs/scaling.md.

`--recipes` instead builds every kind of rank of the recipes, 70B on 512 GPUs included, and checks that no rank hangs.
"""

import sys

from tests.scale.budgets import LAYOUTS, budget, planned, table
from tests.scale.matching import first_mismatch
from tests.scale.test_recipes import recipe
from tests.scale.whole import traces, with_micro_batches


def main() -> int:
    if "--recipes" in sys.argv[1:]:
        return max(_match(name) for name in ("scale_7b", "scale_70b"))
    print("\n".join(table({name: budget(planned(recipe(one), changes)) for name, (one, changes) in LAYOUTS.items()})))
    return 0


def _match(name: str) -> int:
    config = recipe(name)
    made = traces(with_micro_batches(config, config.parallel.pipeline), lambda text: print(text, flush=True))
    wrong = first_mismatch(made)
    print(f"{name}: {len(made)} ranks, {wrong or 'all calls match'}")
    return int(wrong is not None)


if __name__ == "__main__":
    sys.exit(main())
