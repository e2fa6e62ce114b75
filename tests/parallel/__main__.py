"""`python -m tests.parallel`: layouts against one process, as a table; exit 1 if one is off.

--pairwise    a selection in which every pair of options meets (what the tests run), not the whole matrix
--from N      begin with case N of the selection, to go on with a run that was cut short
--only TEXT   cases with TEXT in their name, such as `tp2-pp2`, `sequence` or `dual-lstm.tp4`; may be repeated: all
"""

import argparse
import sys
import time

from tests.parallel.cases import join, train_on_rank
from tests.parallel.matrix import Differences, full, pairwise, truth
from tests.parallel.pool import RankPool

ROW = "{:22} {:11} {:9} {:8} {:4}  {:>8} {:>9} {:>8} {:>8} {:>7}  {}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.parallel", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--pairwise", action="store_true", help="a selection in which every pair of options meets")
    parser.add_argument("--from", type=int, default=1, dest="first", metavar="N", help="begin with case N")
    parser.add_argument("--only", action="append", default=[], metavar="TEXT", help="cases with TEXT in their name")
    options = parser.parse_args()
    cases = pairwise(full()) if options.pairwise else full()
    cases = [case for case in cases if all(text in case.name for text in options.only)]
    if not cases:
        parser.error(f"no case has {' and '.join(options.only)} in its name; one is called {full()[0].name}")
    cases = cases[options.first - 1 :]
    off, began = 0, time.perf_counter()
    print("gradient: largest difference of any parameter at any step, as a share of the bound")
    print(
        ROW.format(
            "variant",
            "layout",
            "recompute",
            "sequence",
            "ZeRO",
            "loss",
            "grad norm",
            "gradient",
            "memory",
            "seconds",
            "",
        )
    )
    with RankPool() as ranks:
        for case in cases:
            started, given, expected = time.perf_counter(), case.config(), truth(case.variant)
            flags = ["on" if flag else "off" for flag in (case.recompute, case.sequence_parallel)]
            try:
                found = join(ranks.run(given.parallel.world_size, train_on_rank, given))
                gap = Differences.between(found, expected)
            except AssertionError as error:
                figures, verdict = ["-"] * 4, f"FAILED {str(error).strip().splitlines()[-1]}"
            else:
                figures = [f"{v:.1e}" for v in (gap.loss, gap.grad_norm)] + [f"{gap.gradient:.3f}", f"{gap.memory:.1e}"]
                verdict = "ok" if gap.is_within_bounds else f"OFF ({gap.worst})"
            off += verdict != "ok"
            seconds = f"{time.perf_counter() - started:.1f}"
            print(
                ROW.format(case.variant, case.layout, *flags, case.zero_stage, *figures, seconds, verdict), flush=True
            )
    print(f"{len(cases)} cases, {off} off, {time.perf_counter() - began:.0f} s")
    return int(off > 0)


if __name__ == "__main__":
    sys.exit(main())
