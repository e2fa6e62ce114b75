"""The command line: fast, one message for a mistake, one JSON object on request."""

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from launch.cli import brt, main
from launch.commands.arguments import split

HEAVY = (
    "torch",
    "ray",
    "mlflow",
    "deepspeed",
    "megatron",
    "matplotlib",
    "webdataset",
    "tokenizers",
    "numpy",
    "pydantic",
    "rich",
)
SETTINGS = ["data.dataset=books", "run.directory=runs/a", "run.steps=2000"]


def run(*arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    out, err = capsys.readouterr()
    assert isinstance(end.value.code, int)
    return end.value.code, out, err


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys; from launch.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "train" in done.stdout
    assert not set(HEAVY) & set(done.stderr.split())


@pytest.mark.parametrize("command", ["data", "train", "status", "checkpoint", "export", "import", "config"])
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(command, "--help", capsys=capsys)
    assert code == 0 and out.startswith("Usage: brt")
    assert brt.get_command(None, command) is not None  # type: ignore[arg-type]


def commands_of(group: click.Group, before: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command below a group, with the words that call it."""
    for name in group.list_commands(click.Context(group)):
        command = group.get_command(click.Context(group), name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands_of(command, (*before, name))
        else:
            yield (*before, name), command


def test_every_command_has_json_and_every_option_is_explained() -> None:
    found = dict(commands_of(brt))
    assert ("data", "build") in found and ("serve",) in found and len(found) > 30
    for name, command in found.items():
        options = [one for one in command.params if isinstance(one, click.Option)]
        assert "--json" in {flag for one in options for flag in one.opts}, name
        assert command.help and all(one.help for one in options), name


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trian"], "No such command 'trian'; nearest: train"),
        (["data", "biuld"], "No such command 'biuld'; nearest: build"),
        (["checkpoint", "verfy"], "No such command 'verfy'; nearest: verify"),
        (["config", "shwo"], "No such command 'shwo'; nearest: show"),
        (["config", "zzz"], "No such command 'zzz'; there are: keys, schema, show"),
        (["train", "run.steps"], "config file run.steps: no such file; a value is given as run.steps=VALUE"),
        (["list"], "no run in . or below it"),
    ],
)
def test_slips_are_answered_with_what_was_meant(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _, out, err = run(*words, capsys=capsys)
    assert said in err and out == ""


def test_an_exporter_says_as_json_where_it_listens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_text("")
    command = [sys.executable, "-P", "-m", "launch.cli", "metrics-exporter", str(tmp_path), "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            told = json.loads(process.stdout.readline())
            assert urllib.request.urlopen(told["url"], timeout=30).status == 200
        finally:
            process.terminate()
    assert told["runs"] == [str(tmp_path)] and told["url"].endswith(f":{told['port']}/metrics")
    code, out, _ = run("metrics-exporter", str(tmp_path / "no"), "--json", capsys=capsys)
    assert code == 10 and "is not a run directory" in json.loads(out)["error"]


def test_train_help_tells_how_to_do_without_ray(capsys: pytest.CaptureFixture[str]) -> None:
    assert "torchrun --nproc-per-node 2 -m brt_dist.worker RUN" in run("train", "--help", capsys=capsys)[1]


def test_config_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a=b.yaml"  # an existing file is a file, whatever its name
    path.write_text("model: {width: 8}\nrun: {tracking: {uri: 'http://u:hunter2@host'}}\n")
    code, out, err = run("config", "show", str(path), *SETTINGS, capsys=capsys)
    assert code == 0 and err.startswith("warning: books: no dataset.json")
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert lines["model.width"].split()[1:] == ["8", f"{path}:1"]
    assert lines["run.steps"].endswith("command line") and lines["model.heads"].endswith("default")
    assert "hunter2" not in out
    code, out, _ = run("config", "show", "--changed", "--json", str(path), *SETTINGS, capsys=capsys)
    shown = json.loads(out)
    assert shown["config"]["model.width"] == {"value": 8, "from": f"{path}:1"}
    assert len(shown["config"]) == 5 and shown["problem"] is None


def test_config_show_of_a_config_that_cannot_run(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run("config", "show", *SETTINGS, "data.segment=1000", capsys=capsys)
    assert code == 10 and "data.segment" in out
    assert err.startswith("error: data.segment=1000 must be a multiple")


def test_config_schema(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run("config", "schema", capsys=capsys)
    assert code == 0 and "model" in json.loads(out)["properties"]
    assert run("config", "schema", "--output", str(tmp_path / "s.json"), capsys=capsys)[1] == ""
    assert json.loads((tmp_path / "s.json").read_text()) == json.loads(out)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["trian"], 2, "No such command 'trian'"),
        (["train"], 10, "no config given"),
        (["train", "missing.yaml"], 10, "config file missing.yaml: no such file"),
        (["train", *SETTINGS, "model.layrs=2"], 10, "nearest: model.layers"),
        (["train", *SETTINGS, "data.segment=1000"], 10, "nearest: data.segment=1024"),
        (["train", *SETTINGS], 11, "books"),
        (["status", "nowhere"], 10, "nowhere is not a run directory"),
    ],
)
def test_a_mistake_is_one_message(
    arguments: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    found, out, err = run(*arguments, capsys=capsys)
    assert (found, out) == (code, "")
    assert message in err and "Traceback" not in err
    found, out, _ = run(*arguments, "--json", capsys=capsys)
    assert found == code
    assert json.loads(out)["exit_code"] == code and message in json.loads(out)["error"]
    assert not list(tmp_path.iterdir()), "nothing was written before the mistake was found"


def test_status_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_text("data: {dataset: books}\nrun: {directory: r, steps: 10}\n")
    (tmp_path / "metrics.jsonl").write_text('{"event": "step", "time": 1.0, "step": 4, "loss": 1.0}\n')
    folder = tmp_path / "attempts" / "001"
    folder.mkdir(parents=True)
    (folder / "attempt.json").write_text('{"attempt": 1, "start": 1.0}')
    code, out, _ = run("status", str(tmp_path), capsys=capsys)
    assert code == 0 and out.startswith("running: attempt 1, step 4 of 10")
    assert json.loads(run("status", str(tmp_path), "--json", capsys=capsys)[1])["step"] == 4


def test_files_and_overrides(tmp_path: Path) -> None:
    assert split(("a.yaml", "x.y=1", "b=c.yaml")) == ([Path("a.yaml")], ["x.y=1", "b=c.yaml"])
