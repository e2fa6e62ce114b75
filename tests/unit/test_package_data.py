"""What an installed copy needs besides Python files (templates, a style sheet, C) is in the package."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
LEFT_OUT = (".py", ".pyc", ".so")


def test_every_file_that_is_not_python_is_installed_too() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = [
        path
        for package in ("brt_dist", "pipelines", "launch")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and path.suffix not in LEFT_OUT
    ]
    assert {path.name for path in found} >= {"page.html.jinja", "chart.html.jinja", "style.css", "listening.c"}
    for path in found:
        package = ".".join(path.parent.relative_to(ROOT).parts)
        patterns = settings["package-data"].get(package, [])
        assert any(path.match(pattern) for pattern in patterns), f"{path} is not in [tool.setuptools.package-data]"
