"""Git checkouts and LaTeX trees: what becomes a document, in which order, and what is named when it cannot."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from brt_dist.data.dataset import Dataset
from brt_dist.errors import DataError
from pipelines.build import BuildSettings, build
from pipelines.sources import BadDocument, Document, open_sources, read_units


def read_all(spec: str) -> list[Document | BadDocument]:
    (source,) = open_sources([spec])
    return list(read_units(source.units(1 << 20), "text"))


def tree(root: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def checkout(root: Path) -> Path:
    for command in (["init", "-q"], ["add", "-A"]):
        subprocess.run(["git", "-C", str(root), *command], check=True)
    return root


def test_a_checkout_is_one_document_breadth_first(tmp_path: Path) -> None:
    files = {"z.py": "z", "a/x.py": "ax\n", "a.b/x.py": "abx\n", "b/c/d.py": "bcd\n", "B.py": "B\n", "empty": ""}
    left_out = {"image": b"\x89\0x", "vendor/x.py": "no", "a/node_modules/x.js": "no", "a/x.min.js": "no"}
    root = tree(tmp_path / "corpus/repo", {**files, **left_out})
    (root / "vendor.py").symlink_to("z.py")
    checkout(root)
    tree(root, {"untracked.py": "no"})
    *others, document = read_all(f"git:{root}")
    assert document == Document("B\nz\nax\nabx\nbcd\n", "repo")
    assert others == [
        BadDocument("repo/empty", "an empty file"),
        BadDocument("repo/image", "a binary file"),
        BadDocument("repo/vendor.py", "a link"),
        BadDocument("repo/a/x.min.js", "a vendored file"),
        BadDocument("repo/vendor/x.py", "a vendored file"),
        BadDocument("repo/a/node_modules/x.js", "a vendored file"),
    ]
    assert all(isinstance(item, BadDocument) and item.is_by_rule for item in others)
    checkout(tree(tmp_path / "corpus/more/other", {"x": "other\n"}))
    texts = [(item.place, len(item.text)) for item in read_all(f"git:{root.parent}") if isinstance(item, Document)]
    assert texts == [("corpus/more/other", 6), ("corpus/repo", 15)]


def test_files_of_a_checkout_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    root = checkout(tree(tmp_path / "repo", {"a.txt": b"abc\xff", "b.txt": "b\n", "c.txt": "c"}))
    (root / "c.txt").unlink()
    assert read_all(f"git:{root}") == [
        BadDocument("repo/a.txt, byte 3", "not UTF-8"),
        BadDocument("repo/c.txt", "tracked by git but missing"),
        Document("b\n", "repo"),
    ]


def test_the_standard_library_as_repositories(tmp_path: Path) -> None:
    for package in (json, __import__("email")):
        folder = Path(str(package.__file__)).parent
        shutil.copytree(folder, tmp_path / folder.name, ignore=shutil.ignore_patterns("__pycache__"))
        checkout(tmp_path / folder.name)
    items = [item for item in read_all(f"git:{tmp_path}") if isinstance(item, Document)]
    assert [os.path.basename(item.place) for item in items] == ["email", "json"]
    for item in items:
        root = tmp_path / os.path.basename(item.place)
        files = sorted(root.rglob("*.py"), key=lambda path: (len(path.parts), path.parts))
        assert item.text.count("\nimport ") > 2
        begins = [item.text.index(path.read_text()) for path in files if path.stat().st_size > 200]
        assert begins == sorted(begins)
    report = build(BuildSettings((f"git:{tmp_path}",), tokenizer="bytes"), tmp_path / "dataset", workers=0)
    with Dataset.open(report.folder) as dataset:
        texts = [bytes(dataset.tokens(n, 0, int(size)).astype("u1")).decode() for n, size in enumerate(dataset.lengths)]
    assert texts == [item.text for item in items]


def test_latex_inputs_are_resolved_and_comments_dropped(tmp_path: Path) -> None:
    files = {
        "p/main.tex": "\\documentclass{article} % class\n% gone\n100\\% \\\\% gone\n\\verb|%| x\n\n\\input{s/one}\n"
        "\\begin{verbatim}\n% kept \\input{no}\n\\end{verbatim}\n%\\input{missing}\n"
        "\\begin{comment}\n\\input{missing}\n\\end{comment}\n\\input{main.bbl}\n",
        "p/s/one.tex": "one\n\\include{s/two.tex} end\n",
        "p/s/two.tex": "two % gone\n",
    }
    text = "\\documentclass{article} \n100\\% \\\\\n\\verb|%| x\n\none\ntwo  end\n"
    text += "\\begin{verbatim}\n% kept \\input{no}\n\\end{verbatim}\n\\input{main.bbl}\n"
    assert read_all(f"latex:{tree(tmp_path / 'papers', files)}") == [Document(text, "papers/p/main.tex")]


def test_parts_that_no_document_includes_are_named(tmp_path: Path) -> None:
    files = {
        "p/main.tex": "\\documentclass{x}\n\\input{s/used}\n",
        "p/s/used.tex": "used \\input{s/deep}\n",
        "p/s/deep.tex": "deep\n",
        "p/s/draft.tex": "\\input{s/more}\n",
        "p/s/more.tex": "more\n",
        "q/lone.tex": "lone\n",
        "q/empty.tex": "",
    }
    *others, document = sorted(
        read_all(f"latex:{tree(tmp_path / 't', files)}"), key=lambda item: isinstance(item, Document)
    )
    assert document == Document("\\documentclass{x}\nused deep\n", "t/p/main.tex")
    assert [item.place for item in others] == ["t/p/s/draft.tex", "t/p/s/more.tex", "t/q/lone.tex"]
    assert all(isinstance(item, BadDocument) and item.is_by_rule for item in others)


@pytest.mark.parametrize("target", ["nowhere", "../../outside"])
def test_missing_latex_inputs_are_named(tmp_path: Path, target: str) -> None:
    tree(tmp_path, {"outside.tex": "secret", "t/p/main.tex": "\\documentclass{x}\n\\input{b}\n"})
    tree(tmp_path, {"t/p/b.tex": f"% first\n\\input{{{target}}}\n"})
    assert read_all(f"latex:{tmp_path / 't'}") == [BadDocument("t/p/b.tex, line 2", "missing input")]


def test_cyclic_latex_inputs_are_named_and_repeated_ones_are_not_cyclic(tmp_path: Path) -> None:
    tree(tmp_path / "t", {"a.tex": "\\documentclass{x}\n\\input b\n\\input b\n", "b.tex": "b\n"})
    assert read_all(f"latex:{tmp_path / 't'}") == [Document("\\documentclass{x}\nb\nb\n", "t/a.tex")]
    tree(tmp_path / "t", {"b.tex": "\\input{c}\n", "c.tex": "\\input{b}\n"})
    assert read_all(f"latex:{tmp_path / 't'}") == [BadDocument("t/c.tex, line 1", "cyclic input")]


def test_refusals(tmp_path: Path) -> None:
    tree(tmp_path / "x", {"a.txt": "a"})
    with pytest.raises(DataError, match="no git checkout"):
        read_all(f"git:{tmp_path / 'x'}")
    with pytest.raises(DataError, match=r"no \.tex files"):
        read_all(f"latex:{tmp_path / 'x'}")
    with pytest.raises(DataError, match="git sources are folders"):
        read_all(f"git:{tmp_path / 'x/a.txt'}")
    with pytest.raises(DataError, match="clone it first"):
        read_all("git:https://example.org/x")
