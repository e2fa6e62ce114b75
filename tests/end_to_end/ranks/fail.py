"""Rank 1 diverges in the third all-reduce; rank 0 then waits for it in vain, and says so loudly."""

import sys

from common import Rank, meet, sum_of_ranks

rank = Rank()
meet()
try:
    for step in range(1, 100):
        if rank.rank == 1 and step == 3:
            rank.leave_error("DivergedError", "the loss is not finite at step 3", 14)
            print("error: the loss is not finite at step 3", file=sys.stderr)
            sys.exit(14)
        sum_of_ranks(rank.rank)
        rank.event("step", step=step, loss=1.0, bits_per_token=1.4)
except RuntimeError as error:
    rank.leave_error("RuntimeError", f"connection closed: {error}", 1)
    raise
