"""Commands that run a module of ours in a process of its own."""

import sys
from collections.abc import Sequence


def module_command(module: str, *arguments: str, python: Sequence[str] = (sys.executable,)) -> list[str]:
    """`python -P -m MODULE ARGUMENTS`.

    With -P the working folder is not on the module path: otherwise a user's `random.py` or `launch.py` there would be
    imported instead of the standard library's or ours.

    Args:
        module: to run.
        arguments: of it.
        python: the interpreter, and what comes before it (a container).
    """
    return [*python, "-P", "-m", module, *arguments]
