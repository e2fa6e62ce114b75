"""Files of a LaTeX tree as documents, with their inputs in their places (see latex.py)."""

from collections.abc import Iterator

from pipelines.sources.base import TreeKind
from pipelines.sources.documents import PART_OF_NOTHING, BadDocument, Document, Unit, document_of
from pipelines.sources.latex import BadInput, is_main, resolve
from pipelines.sources.places import filesystem_of, opened, units_of, walk
from pipelines.sources.text import read_text

_FOLDERS = 256  # folders whose documents' inputs are cached


class LatexTree(TreeKind):
    about = "a LaTeX document with its inputs"
    wanted = "no .tex files"

    def __init__(self, text_field: str) -> None:
        super().__init__(text_field)
        self._inputs = Inputs()

    @classmethod
    def units(cls, folder: str, name: str) -> Iterator[Unit]:
        return units_of(folder, name, lambda file: "latex" if file.endswith(".tex") else None)

    def read(self, unit: Unit) -> Iterator[Document | BadDocument]:
        return _documents(unit, read_text(unit), self._inputs)


def _documents(unit: Unit, main: Document | BadDocument, inputs: "Inputs") -> Iterator[Document | BadDocument]:
    """The document of a `.tex` file whose own text is `main`; nothing for a part of another one."""
    inner = unit.name.split("/", 1)[1]
    root = unit.url.removesuffix(inner)
    if isinstance(main, BadDocument):
        if main.reason != "empty":  # an empty file is a part without content
            yield main
        return
    if not is_main(main.text):
        folders = ["", *(inner[:at] for at, letter in enumerate(inner) if letter == "/")]
        if not any(inner in inputs.of(root, folder) for folder in folders):
            yield BadDocument(unit.name, PART_OF_NOTHING)
        return
    try:
        text = resolve(inner, _Reader(root))
    except BadInput as error:
        path, line, reason = error.args
        yield BadDocument(f"{unit.name.split('/', 1)[0]}/{path}, line {line}", reason)
    except UnicodeDecodeError:  # the file itself is named where it is read as a unit
        yield BadDocument(unit.name, "an input is not UTF-8")
    else:
        yield document_of(text.encode(), unit.name)


class _Reader:
    """The text of a path below `root`, None if there is no file; caches what was read."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.read: set[str] = set()

    def __call__(self, path: str) -> str | None:
        try:
            with opened(self.root + path) as file:
                text = file.read().decode()
        except FileNotFoundError:
            return None
        self.read.add(path)
        return text


class Inputs:
    """Which files documents are made of, by the folder of the documents; cached as long as this object lives."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], frozenset[str]] = {}

    def of(self, root: str, folder: str) -> frozenset[str]:
        """Paths below `root` of the files that documents directly in `folder` are made of."""
        if (root, folder) not in self._known:
            if len(self._known) >= _FOLDERS:
                self._known.clear()
            self._known[root, folder] = _inputs(root, folder)
        return self._known[root, folder]


def _inputs(root: str, folder: str) -> frozenset[str]:
    filesystem, path = filesystem_of(root + folder)
    look, reader = _Reader(root), _Reader(root)
    for _, parts in walk(filesystem, path, (), deep=False):
        name = "/".join((*([folder] if folder else []), *parts))
        if not name.endswith(".tex"):
            continue
        try:
            if is_main(look(name) or ""):
                resolve(name, reader)
        except (BadInput, UnicodeDecodeError):
            continue  # reported where the document is read
    return frozenset(reader.read)
