"""`python -m tests.parallel`: the layouts against one process, as a table; exit 1 if one is off."""

import sys

from tests.parallel.cases import config, join, train_on_rank
from tests.parallel.pool import RankPool
from tests.parallel.test_parity import LAYOUTS, LOSS, NORM, STATE, WEIGHT, largest_difference, plain


def main() -> int:
    truth, failed = plain(), False
    row = "{:18} {:>10} {:>10} {:>10} {:>10}  {}"
    print(row.format("layout", "loss", "grad norm", "memory", "weights", ""))
    with RankPool(8) as ranks:
        for name, layout in LAYOUTS.items():
            given = config(parallel=layout)
            found = join(ranks.run(given.parallel.world_size, train_on_rank, given))
            differences = (
                max(abs(a - b) for a, b in zip(found.losses, truth.losses, strict=True)),
                max(abs(a - b) for a, b in zip(found.grad_norms, truth.grad_norms, strict=True)),
                largest_difference(found.memory, truth.memory),
                largest_difference(found.weights, truth.weights),
            )
            ok = all(d <= bound for d, bound in zip(differences, (LOSS, NORM, STATE, WEIGHT), strict=True))
            failed |= not ok
            print(row.format(name, *(f"{d:.1e}" for d in differences), "ok" if ok else "OFF"), flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
