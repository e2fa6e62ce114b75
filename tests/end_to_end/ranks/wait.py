"""Runs until asked to stop; then rank 0 saves, and both end with the exit code for that."""

import signal
import subprocess
import sys
import time

from common import Rank

rank = Rank()
stop: list[int] = []
signal.signal(signal.SIGTERM, lambda number, _: stop.append(number))
helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
rank.leave_pid("helper", helper.pid)
rank.event("attempt", world_size=rank.world_size, layout={"data": rank.world_size}, start_step=0)
step = 0
while not stop:
    step += 1
    rank.event("step", step=step, loss=1.0, bits_per_token=1.4, tokens_per_second=10.0)
    time.sleep(0.05)
rank.event("checkpoint", step=step, path="checkpoints/saved", seconds=0.1)
sys.exit(17)
