"""The templates of the report: files beside this one; all values are escaped."""

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["coordinate"] = "{:.1f}".format
    return environment


def render(template: str, **values: Any) -> Markup:
    """Render a template to markup, which other templates include unescaped."""
    return Markup(_environment().get_template(template).render(values))
