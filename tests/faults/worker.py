"""`python -m tests.faults.worker RUN ...`: the worker, with the faults in BRT_FAULT.

BRT_FAULT: JSON with step_seconds (every step of every rank takes this much longer), nan ([rank, step]), slow ([rank,
seconds]).
"""

import json
import os
import sys

from brt_dist.parallel.device import choose
from brt_dist.worker import main

if __name__ == "__main__":
    rank = int(os.environ["RANK"])
    choose("cpu", int(os.environ["LOCAL_RANK"]))  # before DeepSpeed is imported

    from tests.faults.inject import poison, slow_down

    fault = json.loads(os.environ.get("BRT_FAULT", "{}"))
    if step_seconds := fault.get("step_seconds"):
        slow_down(step_seconds)
    if rank == fault.get("nan", [None])[0]:
        poison(fault["nan"][1])
    if rank == fault.get("slow", [None])[0]:
        slow_down(fault["slow"][1])
    sys.exit(main())
