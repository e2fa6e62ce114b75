"""The options --json and --show of a benchmark: its figures in a file, and their table again without measuring."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from brt_dist.files import write_atomic


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to this file")
    parser.add_argument("--show", type=Path, metavar="FILE", help="print the table of such a file; measure nothing")


def shows(parser: argparse.ArgumentParser, options: argparse.Namespace, text: Callable[[Any], str]) -> bool:
    """Print the table of the file that --show names; whether it names one.

    Args:
        parser: reports a file that cannot be read.
        text: makes the table of the figures.
    """
    if options.show is None:
        return False
    try:
        print(text(json.loads(options.show.read_text())))
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        parser.error(f"--show {options.show}: not the figures of this benchmark ({error})")
    return True


def keep(options: argparse.Namespace, figures: Any) -> None:
    """Write the figures to the file that --json names, if it names one."""
    if options.json is not None:
        write_atomic(options.json, json.dumps(figures, indent=1) + "\n")
