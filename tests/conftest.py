"""Settings of all tests."""

import os
import signal

from hypothesis import settings

settings.register_profile("untimed", deadline=None)  # a limit on seconds would test the machine
settings.load_profile("untimed")

# Two workers of pytest share the cores; with a thread per core each, torch would have them wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell that starts something in the background has it ignore Ctrl-C, and so would all that tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
