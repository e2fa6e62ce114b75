"""What the documents name exists: commands, options, config keys, files, links, tests; and the examples can run."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import click
import pytest

from brt_dist.config.keys import leaf_keys
from brt_dist.config.loading import load
from brt_dist.config.older import OLDER_KEYS
from brt_dist.config.rules import check
from brt_dist.config.schema import Config
from brt_dist.errors import ExitCode
from launch.cli import brt

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "reproduce/README.md")] + sorted(
    ROOT.glob("docs/**/*.md")
)
EXAMPLES = sorted(ROOT.glob("examples/*.yaml"))
FOLDERS = ("brt_dist", "pipelines", "launch", "tests", "examples", "docs", "benchmarks", "reproduce")
PATH = re.compile(rf"(?:{'|'.join(FOLDERS)})/[\w./*-]+\w")
OTHER_OPTIONS = {
    "--index-url",
    "--attempt",
    "--help",
    "--pairwise",
    "--only",
    "--quick",
    "--write",
}  # of pip, the worker, tests and benchmarks
OTHER_OPTIONS |= {"--listen"}  # of launch.nodes.ray_node

documents = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)


def fenced(document: Path, language: str = "[a-z]*") -> str:
    """All code blocks."""
    return "\n".join(re.findall(rf"^```{language}\n(.*?)^```", document.read_text(), re.DOTALL | re.MULTILINE))


def inline(document: Path) -> list[str]:
    """All code within the text."""
    text = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.DOTALL | re.MULTILINE)
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", text)]


def shell_lines(document: Path, program: str) -> Iterator[list[str]]:
    """Arguments of every call of `program` in the code blocks."""
    for line in fenced(document, "sh").replace("\\\n", " ").splitlines():
        for part in re.split("&&| & ", line):
            words = shlex.split(part, comments=True)
            if words and Path(words[0]).name == program:
                yield words[1:]


def resolve(words: list[str]) -> tuple[click.Command, list[str]]:
    """The command that `brt WORDS` reaches, and what is left of the words."""
    command: click.Command = brt
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        found = command.get_command(click.Context(command), words[0])
        assert found is not None, f"no command brt {' '.join(words)}"
        command, words = found, words[1:]
    return command, words


def commands(group: click.Group) -> Iterator[click.Command]:
    for name in group.list_commands(click.Context(group)):
        command = group.get_command(click.Context(group), name)
        assert command is not None
        yield command
        if isinstance(command, click.Group):
            yield from commands(command)


@documents
def test_commands_in_blocks_parse(document: Path) -> None:
    for words in shell_lines(document, "brt"):
        command, arguments = resolve(words)
        assert not isinstance(command, click.Group), words
        command.make_context(command.name, list(arguments))  # raises click.UsageError
        for argument in arguments:
            if re.match(r"[a-z]+\.[\w.]+=", argument):
                assert argument.split("=")[0] in set(leaf_keys(Config)), f"{argument} sets no known key"


@documents
def test_commands_in_the_text_exist(document: Path) -> None:
    options = {option for command in commands(brt) for parameter in command.params for option in parameter.opts}
    for code in inline(document):
        if code.startswith("brt "):
            *groups, last = code.split()[1:]
            for name in last.split("|"):  # brt data build|verify
                resolve([*groups, name])
        if re.match(r"--[a-z]", code):
            assert code.split()[0] in options | OTHER_OPTIONS, f"no option {code}"


@documents
def test_make_targets_and_modules_exist(document: Path) -> None:
    code = fenced(document) + "\n" + "\n".join(inline(document)) + "\n" + document.read_text()
    calls = [["make", *words] for words in shell_lines(document, "make")]
    calls += [item.split() for item in inline(document) if item.startswith("make ")]
    for _, *words in calls:
        folder, target = (ROOT / words[1], words[2]) if words[0] == "-C" else (ROOT, words[0])
        makefile = (folder / "Makefile").read_text()
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"no target {target} in {folder}/Makefile"
    for module in re.findall(r"-m ((?:brt_dist|launch|pipelines|tests|benchmarks)[\w.]*)", code):
        path = ROOT / module.replace(".", "/")
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), f"no module {module}"


@documents
def test_links_lead_somewhere(document: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if "://" not in link:
            assert (document.parent / link).exists(), f"{link} leads nowhere"


@documents
def test_files_that_are_named_exist(document: Path) -> None:
    named = {path for code in [*inline(document), fenced(document)] for path in PATH.findall(code)}
    for path in named:
        assert any(ROOT.glob(path)), f"{path} does not exist"


@documents
def test_config_keys_that_are_named_exist(document: Path) -> None:
    keys = set(leaf_keys(Config))
    sections = {".".join(key.split(".")[:depth]) for key in keys for depth in range(1, key.count(".") + 1)}
    key = re.compile(rf"((?:{'|'.join(Config.model_fields)})\.[a-z][a-z_.]*)(?:=\S+)?$")
    for code in inline(document):
        match = key.match(code)
        if match:
            assert match[1] in keys | sections | set(OLDER_KEYS), f"no config key {match[1]}"


def test_tests_and_cases_that_are_named_exist() -> None:
    files = {path: path.read_text() for path in ROOT.glob("tests/**/*.py")}
    cases = "\n".join(text for path, text in files.items() if path.parent.name == "parallel")
    for code in inline(ROOT / "docs" / "traps.md"):
        if re.fullmatch(r"test_\w+", code):
            assert any(f"def {code}(" in text for text in files.values()), f"no test {code}"
        if re.fullmatch(r"(one|tp\d|pp\d|dp\d)[-\w]*", code):
            assert f'"{code}": ' in cases, f"no case {code}"


def test_exit_codes_are_those_of_the_code() -> None:
    rows = re.findall(r"^\| (\d+) \| (\w+) \|", (ROOT / "docs" / "launching.md").read_text(), re.MULTILINE)
    assert {(int(code), name) for code, name in rows} == {(int(code), code.name.lower()) for code in ExitCode}


def test_every_document_is_linked_from_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    for document in DOCUMENTS:
        assert document.name == "README.md" or f"({document.relative_to(ROOT)})" in readme


def test_pictures_are_well_formed() -> None:
    for picture in ROOT.glob("docs/*.svg"):
        assert ElementTree.parse(picture).getroot().tag.endswith("svg")


@pytest.mark.parametrize("path", sorted(ROOT.glob("examples/sizes/*.yaml")), ids=lambda path: path.stem)
def test_sizes_are_models_to_put_before_a_config(path: Path) -> None:
    loaded = load([path, ROOT / "examples" / "paper_150m.yaml"], ["data.dataset=d", "model.feedback=true"])
    check(loaded.config)
    rest = load(path, ["data.dataset=d", "run.directory=r", "run.steps=5000"])
    assert {key.split(".")[0] for key, origin in rest.provenance.items() if str(path) in origin} == {"model"}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_load_and_can_run(path: Path, tmp_path: Path) -> None:
    given = path.read_text()
    folders = [f"data.{name}={tmp_path / name}" for name in ("dataset", "validation") if f"  {name}:" not in given]
    check(load(path, folders).config)


def test_there_are_examples() -> None:
    assert {path.stem for path in EXAMPLES} >= {"quickstart", "paper_150m", "paper_1b3"}
