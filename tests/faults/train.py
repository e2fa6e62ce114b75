"""`brt train` with the faulty worker: `python -m tests.faults.train CONFIG SETTING ...`."""

import sys
from pathlib import Path

from rich.console import Console

from brt_dist.errors import BrtError
from launch.train import train

try:
    outcome = train(
        [Path(sys.argv[1])], sys.argv[2:], Console(stderr=True), [sys.executable, "-m", "tests.faults.worker"]
    )
except BrtError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(int(error.exit_code))
print(outcome.verdict)
sys.exit(int(outcome.verdict.exit_code))
