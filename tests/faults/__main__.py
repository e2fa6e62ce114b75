"""`python -m tests.faults [NAME ...]`: injects real faults into real runs; makes the table of docs/faults.md.

Needs root for a small file system and network namespaces.  Exit 1 if a run did not survive as it should.
"""

import sys
import tempfile
import time
import traceback
from pathlib import Path

from tests.faults.bench import STEPS, Bench
from tests.faults.network import OVER_TWO_NODES
from tests.faults.scenarios import ON_ONE_MACHINE

SCENARIOS = ON_ONE_MACHINE | OVER_TWO_NODES
HEAD = (
    "| fault | verdict of each attempt → what followed | steps trained again | seconds to the next step | losses |",
    "|---|---|---|---|---|",
)


def main(names: list[str]) -> int:
    unknown = [name for name in names if name not in SCENARIOS]
    if unknown:
        print(f"no fault {', '.join(unknown)}; there are {', '.join(SCENARIOS)}", file=sys.stderr)
        return 2
    failed = 0
    print(*HEAD, sep="\n", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        truth = bench.undisturbed()
        for name in names or SCENARIOS:
            what, scenario = SCENARIOS[name]
            begin = time.monotonic()
            try:
                found = scenario(bench, truth)
            except Exception:  # the other faults are still worth running
                failed += 1
                print(f"| {what} | FAILED | | | |\n{traceback.format_exc()}", flush=True)
                continue
            same = "equal to the bit" if found.largest == 0 else f"within {found.largest:.1e}"
            seconds = f"{found.seconds:.1f}" if found.seconds else "none lost"
            print(f"| {what} | {'; '.join(found.verdicts)} | {found.lost} | {seconds} | {same} |", flush=True)
            print(f"{name}: {time.monotonic() - begin:.0f} s", file=sys.stderr, flush=True)
    print(f"\n{len(names or SCENARIOS)} faults, {failed} failed; runs of {STEPS} steps", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
