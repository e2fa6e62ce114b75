"""`brt train` with another program as the rank: `python -m tests.end_to_end.drive PROGRAM SETTING ...`.

Prints the outcome as JSON and ends with its exit code, as `brt train --json` does.
"""

import json
import sys
from pathlib import Path

from rich.console import Console

from brt_dist.errors import BrtError
from launch.commands.arguments import split
from launch.train import train

program, *settings = sys.argv[1:]
files, overrides = split(tuple(settings))
rank = Path(__file__).parent / "ranks" / f"{program}.py"
try:
    outcome = train(files, overrides, Console(stderr=True), [sys.executable, str(rank)])
except BrtError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(int(error.exit_code))
print(json.dumps(outcome.to_json()))
sys.exit(int(outcome.verdict.exit_code))
