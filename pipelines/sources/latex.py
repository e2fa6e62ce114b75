r"""LaTeX trees as documents: every `.tex` file with a `\documentclass` is one, its inputs put in their places.

`\input`, `\include` and `\subfile` of `.tex` files are resolved from the folder of the main file, as TeX does, and
not beyond the source; files of other kinds (`_OTHER_ENDINGS`) stay as they are written. Comments go from `%` to the
end of the line, a line that holds nothing else goes whole; `\%`, `\verb` and verbatim environments keep theirs, and
the lines of a `comment` environment go.  A
`.tex` file with no `\documentclass` is a part of others and no document of its own.
"""

import io
import posixpath
import re
from collections.abc import Callable

VERBATIM = ("verbatim", "verbatim*", "Verbatim", "lstlisting", "minted")
_END_OF_COMMENT = "\\end{comment}"
_COMMENT = re.compile(r"(\\verb\*?(?P<mark>[^A-Za-z\s*]).*?(?P=mark)|\\.)|%.*")
_INPUT = re.compile(r"\\(?:input|include|subfile)(?:\s*\{\s*([^}]+?)\s*\}|[ \t]+([^\s\\{}]+))")
_BEGIN = re.compile(r"\\begin\s*\{(" + "|".join(map(re.escape, VERBATIM)) + r")\}")
_CLASS = re.compile(r"\\documentclass\b")
_OTHER_ENDINGS = frozenset(
    (".bbl", ".tikz", ".pgf", ".sty", ".cls", ".def", ".cfg", ".pdf_tex", ".pstex_t", ".eps_tex")
)


class BadInput(Exception):
    """An input that cannot be resolved.  Arguments: the file and line that include it, and a fixed phrase."""


def without_comments(text: str) -> list[tuple[int, str, bool]]:
    """Lines that stay: their number from 1, the text with its newline, and whether it is verbatim."""
    lines: list[tuple[int, str, bool]] = []
    closing = ""
    for number, line in enumerate(io.StringIO(text, newline="\n"), 1):
        if closing:
            if closing != _END_OF_COMMENT:
                lines.append((number, line, True))
            closing = "" if closing in line else closing
            continue
        kept = _COMMENT.sub(lambda match: match[1] or "", line)
        if kept.lstrip().startswith("\\begin{comment}"):
            closing = _END_OF_COMMENT
            continue
        if kept.strip() or not line.strip():
            lines.append((number, kept, False))
        if (begins := _BEGIN.search(kept)) and (end := f"\\end{{{begins[1]}}}") not in kept:
            closing = end
    return lines


def is_main(text: str) -> bool:
    r"""Whether there is a `\documentclass` outside comments."""
    return any(_CLASS.search(line) for _, line, verbatim in without_comments(text) if not verbatim)


def resolve(main: str, read: Callable[[str], str | None]) -> str:
    """The text of a main file with its inputs.  main: its path in the source.  read: the text of a path, None: no file.

    BadInput: an input that is missing, or that includes itself in the end.
    """
    folder = posixpath.dirname(main)

    def expand(path: str, text: str, above: tuple[str, ...]) -> str:
        def put(match: re.Match[str], number: int) -> str:
            name = match[1] or match[2]
            ending = posixpath.splitext(name)[1]
            if ending in _OTHER_ENDINGS:
                return match[0]
            target = posixpath.normpath(posixpath.join(folder, name if ending == ".tex" else name + ".tex"))
            if target in above:
                raise BadInput(path, number, "cyclic input")
            content = None if target.startswith(("../", "/")) else read(target)
            if content is None:
                raise BadInput(path, number, "missing input")
            return expand(target, content, (*above, target)).removesuffix("\n")

        return "".join(
            line if verbatim else _INPUT.sub(lambda match, number=number: put(match, number), line)  # type: ignore[misc]
            for number, line, verbatim in without_comments(text)
        )

    return expand(main, read(main) or "", (main,))
