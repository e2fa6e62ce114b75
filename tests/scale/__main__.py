"""`python -m tests.scale`: what three large layouts cost, counted on the meta device, as the table of docs/scaling.md.

Finished layouts are kept in build/scale.json; a rerun continues after them, as long as the code is the same.

    --write     put the table into docs/scaling.md
    --recipes   instead build every kind of rank of the recipes, 70B on 512 GPUs included, and check that none hangs
    --layouts N do so for N random layouts of up to 64 ranks, and build every rank
"""

import json
import sys
from hashlib import sha256
from itertools import islice
from pathlib import Path
from time import monotonic

from brt_dist.files import write_atomic
from tests.scale.budgets import LAYOUTS, counted, derived, planned, table
from tests.scale.layouts import described, legal_layouts, mismatch_of
from tests.scale.matching import first_mismatch
from tests.scale.page import PAGE, with_table
from tests.scale.test_recipes import recipe
from tests.scale.whole import traces, with_micro_batches

ROOT = Path(__file__).parents[2]
DONE = ROOT / "build" / "scale.json"


def main() -> int:
    if "--layouts" in sys.argv[1:]:
        return _match_layouts(int(sys.argv[sys.argv.index("--layouts") + 1]))
    if "--recipes" in sys.argv[1:]:
        return max(_match(name) for name in ("scale_7b", "scale_70b"))
    lines = table(_rows())
    print("\n".join(lines))
    if "--write" in sys.argv[1:]:
        write_atomic(PAGE, with_table(PAGE.read_text(), lines))
    return 0


def _rows() -> dict[str, dict[str, str]]:
    """By layout; each is kept as soon as it is done."""
    done = json.loads(DONE.read_text()) if DONE.exists() else {}
    if done.get("code") != (code := _code()):
        done = {"code": code, "layouts": {}}
    for name, (one, changes) in LAYOUTS.items():
        if name not in done["layouts"]:
            config, start = planned(recipe(one), changes), monotonic()

            def told(text: str, name: str = name, start: float = start) -> None:
                print(f"{monotonic() - start:5.0f} s  {name}: {text}", file=sys.stderr, flush=True)

            done["layouts"][name] = counted(config, told) | derived(config)
            DONE.parent.mkdir(exist_ok=True)
            write_atomic(DONE, json.dumps(done, indent=1))
    return dict(done["layouts"])


def _code() -> str:
    """Changes with the code that is counted."""
    files = [*ROOT.glob("brt_dist/**/*.py"), *ROOT.glob("tests/scale/*.py"), *ROOT.glob("examples/scale_*.yaml")]
    return sha256(b"".join(path.read_bytes() for path in sorted(files))).hexdigest()


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
    config, start = recipe(name), monotonic()
    made = traces(with_micro_batches(config, config.parallel.pipeline), lambda text: print(text, flush=True))
    wrong = first_mismatch(made)
    print(f"{name}: {len(made)} ranks, {wrong or 'all calls match'}, {monotonic() - start:.0f} s")
    return int(wrong is not None)


if __name__ == "__main__":
    sys.exit(main())
