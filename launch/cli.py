"""The command `brt`.  Subcommands are imported only when used, so that `brt --help` is instant."""

import importlib
import io
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click

from brt_dist.errors import BrtError, ExitCode, system_error
from brt_dist.kinds import BACKENDS, WEIGHT_FORMATS
from launch.commands.arguments import NearestGroup, quiet_libraries
from launch.run.open_files import open_more_files

# command: ("module:attribute", its line in the help)
_COMMANDS = {
    "data": ("launch.commands.data:data", "Build, verify and inspect datasets."),
    "plan": ("launch.commands.plan:plan", "Compute memory, time and price of a run before it starts."),
    "train": ("launch.commands.train:train", "Train a model from a config, or resume its run."),
    "sweep": ("launch.commands.sweep:sweep", "Train a config once per combination of values."),
    "reproduce": ("launch.commands.reproduce:reproduce", "Train the paper's table and compare with its figures."),
    "submit": ("launch.commands.submit:submit", f"Submit a run to a backend: {', '.join(BACKENDS)}."),
    "resume": ("launch.commands.submit:resume", "Submit a run again; it resumes from its last checkpoint."),
    "stop": ("launch.commands.submit:stop", "Ask a submitted run to save and stop."),
    "logs": ("launch.commands.submit:logs", "Print the log of a submitted run or of one of its ranks."),
    "status": ("launch.commands.status:status", "Show the state of a run."),
    "list": ("launch.commands.list:list_", "List the runs below a folder."),
    "report": ("launch.commands.report:report", "Write a self-contained HTML report of a run."),
    "eval": ("launch.commands.eval:evaluate", "Measure a trained model on whole documents."),
    "generate": ("launch.commands.generate:generate", "Continue a text with a trained model."),
    "serve": ("launch.commands.serve:serve", "Serve a trained model over HTTP."),
    "simulate": ("launch.commands.simulate:simulate", "Simulate a config on many GPUs: step, scaling, failures."),
    "doctor": ("launch.commands.doctor:doctor", "Check the nodes: versions, devices, network, storage, clocks."),
    "checkpoint": ("launch.commands.checkpoint:checkpoint", "List, show, verify and prune the checkpoints of a run."),
    "export": ("launch.commands.export:export", f"Export the weights of a run: {', '.join(WEIGHT_FORMATS)}."),
    "import": ("launch.commands.export:import_", "Convert weights so that a run can start from them."),
    "metrics-exporter": ("launch.commands.exporter:exporter", "Serve the latest metrics of runs to Prometheus."),
    "config": ("launch.commands.config:config", "Show a resolved config, what each key means, or the schema."),
}


class LazyGroup(NearestGroup):
    """A group that imports a subcommand only when it is used.

    Args:
        lazy: `{name: ("module:attribute", help)}`.
    """

    def __init__(self, *arguments: Any, lazy: Mapping[str, tuple[str, str]], **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._lazy = lazy

    def list_commands(self, context: click.Context) -> list[str]:
        return list(self._lazy)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in self._lazy:
            return None
        module, _, attribute = self._lazy[name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in self._lazy.items()])


@click.group(cls=LazyGroup, lazy=_COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="brt_dist", prog_name="brt")
def brt() -> None:
    """Train Block-Recurrent Transformers on many processes.

    See `brt COMMAND --help` for details.  With `--json` a command prints one JSON object on standard output;
    everything else goes to standard error.  The exit code says why a command ended.
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point.  A user's mistake gives one message and an exit code; a traceback is a bug in brt."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    _take_any_text()
    open_more_files()
    quiet_libraries()
    try:
        result = brt.main(args=given, prog_name="brt", standalone_mode=False)
        code = result if isinstance(result, int) else 0
    except click.exceptions.Exit as error:
        code = error.exit_code
    except click.ClickException as error:
        error.show()
        code = _fail(given, error.format_message(), ExitCode.USAGE)
    except (click.Abort, KeyboardInterrupt):
        code = _fail(given, "interrupted", ExitCode.INTERRUPTED)
    except BrtError as error:
        print(f"error: {error}", file=sys.stderr)
        code = _fail(given, str(error), error.exit_code)
    except BrokenPipeError:  # `brt ... | head`
        sys.stderr.close()
        code = 0
    except OSError as error:
        message = system_error(error)
        if message is None:
            raise
        print(f"error: {message}", file=sys.stderr)
        code = _fail(given, message, ExitCode.ENVIRONMENT)
    sys.exit(code)


def _take_any_text() -> None:
    """Print any path or text; characters that the terminal cannot show are escaped (`\\udcff`)."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _fail(given: Sequence[str], message: str, code: ExitCode) -> int:
    if "--json" in given:
        click.echo(json.dumps({"error": message, "exit_code": int(code), "reason": code.name.lower()}))
    return int(code)


if __name__ == "__main__":
    main()
