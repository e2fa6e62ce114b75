"""Git checkouts as documents: one repository, one document.

Files: those that git tracks, as they are in the work tree.  Left out, counted and listed: links, submodules, binary
files (a NUL in the first 8,000 bytes, git's own rule), empty files and vendored ones (`VENDORED`, `*.min.js`,
`*.min.css`).  Order: breadth-first, that
is by the number of path components and then by path, compared component by component as UTF-8 bytes.  Contents are
concatenated; a file that does not end in a newline gets one.
"""

import hashlib
import os
import subprocess
from collections.abc import Iterator

from brt_dist.errors import DataError
from pipelines.sources.base import TreeKind
from pipelines.sources.documents import (
    BINARY_FILE,
    EMPTY_FILE,
    LINK,
    SUBMODULE,
    VENDORED_FILE,
    BadDocument,
    Document,
    Unit,
    printable,
)

VENDORED = frozenset(
    ("vendor", "vendored", "_vendor", "third_party", "third-party", "thirdparty", "node_modules", "bower_components")
)
_BINARY_BYTES = 8000


class BrokenCheckout(DataError):
    """A folder that looks like a checkout, but that git cannot read."""


class Checkouts(TreeKind):
    about = "a git checkout: the folder itself, or each checkout below it"
    wanted = "no git checkout there or below (a folder that holds .git)"
    only_here = "git sources are checkouts on this machine; clone it first"

    @classmethod
    def units(cls, folder: str, name: str) -> Iterator[Unit]:
        """A unit per checkout below a folder, or of the folder itself.  DataError: git cannot read one."""
        for path, place in checkouts(folder, name):
            digest, size = hashlib.sha256(), 0
            try:
                tracked = tracked_files(path)
            except BrokenCheckout:
                tracked = []  # reported when it is read, where it can be left out
            for file in tracked:
                try:
                    status = os.lstat(os.path.join(path, file))
                    facts, size = f"{status.st_size} {status.st_mtime}", size + status.st_size
                except OSError:
                    facts = "missing"
                digest.update(os.fsencode(file) + b"\0" + facts.encode() + b"\0")
            yield Unit(path, place, "git", 0, size, digest.hexdigest())

    def read(self, unit: Unit) -> Iterator[Document | BadDocument]:
        """The repository as one document, after those of its files that are unusable."""
        texts: list[str] = []
        try:
            tracked = tracked_files(unit.url)
        except BrokenCheckout:
            yield BadDocument(unit.name, "a checkout that git cannot list")
            return
        for file in tracked:
            path, place = os.path.join(unit.url, file), f"{unit.name}/{printable(file)}"
            if _is_vendored(file.split("/")):
                yield BadDocument(place, VENDORED_FILE)
                continue
            if os.path.islink(path) or os.path.isdir(path):
                yield BadDocument(place, LINK if os.path.islink(path) else SUBMODULE)
                continue
            try:
                with open(path, "rb") as stream:
                    data = stream.read()
            except FileNotFoundError:
                yield BadDocument(place, "tracked by git but missing")
                continue
            if b"\0" in data[:_BINARY_BYTES] or not data:
                yield BadDocument(place, BINARY_FILE if data else EMPTY_FILE)
                continue
            try:
                text = data.decode()
            except UnicodeDecodeError as error:
                yield BadDocument(f"{place}, byte {error.start}", "not UTF-8")
                continue
            texts.append(text if text.endswith("\n") else text + "\n")
        yield Document("".join(texts), unit.name) if texts else BadDocument(unit.name, "empty")


def checkouts(folder: str, name: str) -> Iterator[tuple[str, str]]:
    """Folders that are checkouts, with their places, by path; checkouts are not searched for others."""
    if os.path.exists(os.path.join(folder, ".git")):
        yield folder, name
        return
    for entry in sorted(os.scandir(folder), key=lambda entry: os.fsencode(entry.name)):
        if entry.is_dir(follow_symlinks=False) and not entry.name.startswith("."):
            yield from checkouts(entry.path, f"{name}/{printable(entry.name)}")


def tracked_files(folder: str) -> list[str]:
    """Paths of the files that git tracks, in order.  DataError: git cannot read it."""
    command = ["git", "-C", folder, "ls-files", "-z", "--cached"]
    try:
        run = subprocess.run(command, capture_output=True, check=False)
    except FileNotFoundError:
        raise DataError("git checkouts are listed by the command git, which is not installed") from None
    if run.returncode:
        raise BrokenCheckout(f"{folder}: {run.stderr.decode(errors='replace').strip() or 'git ls-files failed'}")
    # A file with a merge conflict is listed once per side: a set.
    parts = {tuple(name.split(b"/")) for name in run.stdout.split(b"\0") if name}
    return [os.fsdecode(b"/".join(path)) for path in sorted(parts, key=lambda path: (len(path), path))]


def _is_vendored(parts: list[str]) -> bool:
    return not VENDORED.isdisjoint(parts[:-1]) or parts[-1].endswith((".min.js", ".min.css"))
