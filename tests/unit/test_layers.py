"""Imports run one way: the contracts of import-linter in pyproject.toml hold."""

import re
import sys
from pathlib import Path

import pytest
from importlinter.cli import lint_imports

ROOT = Path(__file__).parents[2]


def test_every_file_imports_from_lower_layers_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    code = lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True)
    said = capsys.readouterr().out
    assert code == 0, said
    assert "4 kept, 0 broken" in said


def test_an_import_the_wrong_way_breaks_a_contract(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same contracts, over packages with one file a room, in which the config imports the model."""
    text = (ROOT / "pyproject.toml").read_text()
    (tmp_path / "pyproject.toml").write_text(text)
    for package in ("brt_dist", "pipelines", "launch"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
    for package, layers in re.findall(r'containers = \["(\w+)"\].*?\nlayers = \[(.*?)\n\]', text, re.DOTALL):
        for room in re.findall(r"\w+", layers):
            (tmp_path / package / f"{room}.py").touch()
    monkeypatch.chdir(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] in ("brt_dist", "pipelines", "launch")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert lint_imports(no_cache=True) == 0, capsys.readouterr().out
    (tmp_path / "brt_dist" / "config.py").write_text("import brt_dist.model\n")
    assert lint_imports(no_cache=True) == 1
    assert "brt_dist.config is not allowed to import brt_dist.model" in capsys.readouterr().out
