"""The command line, called in this process."""

from collections.abc import Callable

import pytest

from launch.cli import main

Run = Callable[..., tuple[int, str, str]]
"""Exit status, standard output and standard error of a command line."""


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert "Traceback" not in err and isinstance(end.value.code, int)
        return end.value.code, out, err

    return call
