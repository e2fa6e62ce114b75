"""`python -m tests.golden FILE.npz [FILE.npz ...]`: compare the model with golden files, one line each.

Exit code 0: all within the tolerances; 1: one is not, or cannot be read; 2: the model does not have a kind.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from brt_dist.errors import DataError
from brt_dist.parallel.layout import single_process
from tests.golden.check import FORWARD_TOLERANCE, GRADIENT_TOLERANCE, UnsupportedKind, compare


def main(arguments: list[str]) -> int:
    if not arguments or any(argument.startswith("-") for argument in arguments):
        print(__doc__, file=sys.stderr)
        return 1
    with single_process():
        return report([Path(argument) for argument in arguments])


def report(paths: Sequence[Path]) -> int:
    """Print the table and return the exit code.  Megatron's groups must exist."""
    width = max(len(path.stem) for path in paths)
    print(
        f"{'name':{width}}  forward   state     gradient  (at most {FORWARD_TOLERANCE:g} absolute; the gradient "
        f"{GRADIENT_TOLERANCE:g} of the largest value of its tensor)"
    )
    failed = unsupported = False
    for path in paths:
        try:
            found = compare(path)
        except DataError as error:
            failed = True
            print(f"{path.stem:{width}}  not ok: {error}")
        except UnsupportedKind as kind:
            unsupported = True
            print(f"{path.stem:{width}}  the model does not have this kind: {kind}")
        else:
            failed |= not found.ok
            verdict = "ok" if found.ok else "not ok"
            print(f"{path.stem:{width}}  {found.forward:.1e}   {found.state:.1e}   {found.gradient:.1e}   {verdict}")
    return 1 if failed else 2 if unsupported else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
