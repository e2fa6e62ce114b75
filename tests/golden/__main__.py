"""`python -m tests.golden [--device cuda] FILE.npz [FILE.npz ...]`: compare the model with golden files, one line each.

Each is described by the .json of its name beside it, or by its entry in the index.json there.

Exit code 0: all within the tolerances; 1: one is not, or cannot be read; 2: a kind does not exist here.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from brt_dist.errors import DataError, PlatformError
from brt_dist.parallel.layout import single_process
from tests.golden.check import compare
from tests.golden.differences import FORWARD_TOLERANCE, GRADIENT_TOLERANCE, UnknownKind


def main(arguments: list[str]) -> int:
    kind = "cpu"
    if arguments[:1] == ["--device"] and arguments[1:2] in (["cpu"], ["cuda"]):
        kind, arguments = arguments[1], arguments[2:]
    if not arguments or any(argument.startswith("-") for argument in arguments):
        print(__doc__, file=sys.stderr)
        return 1
    try:
        with single_process(kind) as device, device.torch:
            return report([Path(argument) for argument in arguments])
    except PlatformError as error:  # there is no GPU
        print(f"error: {error}", file=sys.stderr)
        return 1


def report(paths: Sequence[Path]) -> int:
    """Print the table and return the exit code.  Megatron's groups must exist."""
    width = max(len(path.stem) for path in paths)
    print(
        f"{'name':{width}}  forward   state     gradient  (at most {FORWARD_TOLERANCE:g}; the gradient "
        f"{GRADIENT_TOLERANCE:g} of the largest value of its tensor)"
    )
    failed = unsupported = False
    for path in paths:
        try:
            found = compare(path)
        except DataError as error:
            failed = True
            print(f"{path.stem:{width}}  not ok: {error}")
        except UnknownKind as kind:
            unsupported = True
            print(f"{path.stem:{width}}  no such kind here: {kind}")
        else:
            failed |= not found.ok
            verdict = "ok" if found.ok else "not ok"
            numbers = (found.forward, found.state, found.gradient)
            cells = "".join(f"{'-' if number is None else f'{number:.1e}':10}" for number in numbers)
            print(f"{path.stem:{width}}  {cells}{verdict}")
    return 1 if failed else 2 if unsupported else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
