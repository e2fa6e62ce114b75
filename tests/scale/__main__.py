"""`python -m tests.scale`: what three large layouts cost, counted on the meta device, as the table of docs/scaling.md.

`--recipes` instead builds every kind of rank of the recipes, 70B on 512 GPUs included, and checks that no rank hangs.
`--layouts N` does so for N random layouts of up to 64 ranks, every one of which is built.
"""

import sys
from itertools import islice

from tests.scale.budgets import LAYOUTS, budget, planned, table
from tests.scale.layouts import described, legal_layouts, mismatch_of
from tests.scale.matching import first_mismatch
from tests.scale.test_recipes import recipe
from tests.scale.whole import traces, with_micro_batches


def main() -> int:
    if "--layouts" in sys.argv[1:]:
        return _match_layouts(int(sys.argv[sys.argv.index("--layouts") + 1]))
    if "--recipes" in sys.argv[1:]:
        return max(_match(name) for name in ("scale_7b", "scale_70b"))
    print("\n".join(table({name: budget(planned(recipe(one), changes)) for name, (one, changes) in LAYOUTS.items()})))
    return 0


def _match_layouts(count: int) -> int:
    wrong = 0
    for number, config in enumerate(islice(legal_layouts(seed=1), count), 1):
        found = mismatch_of(config, everyone=True)
        wrong += found is not None
        ranks = config.parallel.world_size
        # standard output has what DeepSpeed prints
        print(
            f"{number}: {ranks} ranks, {described(config)}: {found or 'all calls match'}", file=sys.stderr, flush=True
        )
    return int(wrong > 0)


def _match(name: str) -> int:
    config = recipe(name)
    made = traces(with_micro_batches(config, config.parallel.pipeline), lambda text: print(text, flush=True))
    wrong = first_mismatch(made)
    print(f"{name}: {len(made)} ranks, {wrong or 'all calls match'}")
    return int(wrong is not None)


if __name__ == "__main__":
    sys.exit(main())
