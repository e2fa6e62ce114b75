"""Rank 1 is killed by a signal that leaves no report; rank 0 ignores SIGTERM and has a detached helper."""

import os
import signal
import subprocess
import sys
import time

from common import Rank

rank = Rank()
if rank.rank == 0:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    (rank.folder / "helper.pid").write_text(str(helper.pid))
    time.sleep(600)
while not (rank.folder / "helper.pid").exists():
    time.sleep(0.02)
print("last words", flush=True)
os.kill(os.getpid(), signal.SIGSEGV)
