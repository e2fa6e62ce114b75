"""A corpus of Python packages."""

import json
from pathlib import Path

import pytest

from brt_dist.errors import DataError
from pipelines.code_corpus import HELD_OUT, SMALLEST, write_code


def packages(root: Path, count: int) -> None:
    for number in range(count):
        for module in ("b", "a", "inner/c"):
            path = root / f"package{number}" / f"{module}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"# module {module} of {number}\n")
        (root / f"package{number}" / "binary.py").write_bytes(b"\xff\xfe\x00")
    (root / "__pycache__").mkdir()
    (root / "not-a-package").mkdir()
    about = root / "some-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.4\nName: some\nVersion: 1.0\nLicense-Expression: MIT\n")
    (about / "RECORD").write_text("package3/a.py,,\n")


def test_a_package_is_a_document_with_its_modules_in_order(tmp_path: Path) -> None:
    packages(tmp_path / "site", 40)
    made = write_code(tmp_path / "corpus", [tmp_path / "site"])
    assert len(made.train) + len(made.validation) == 40
    assert 0 < len(made.validation) < 40 // HELD_OUT * 4
    assert not set(made.train) & set(made.validation)
    part = "train" if "package3.txt" in made.train else "validation"
    text = (tmp_path / "corpus" / part / "package3.txt").read_text()
    assert [line for line in text.splitlines() if line.startswith("# package")] == [
        "# package3/a.py", "# package3/b.py", "# package3/inner/c.py"
    ]  # fmt: skip
    licences = json.loads((tmp_path / "corpus" / "corpus.json").read_text())["licences"]
    assert licences["package3"] == "MIT"
    assert licences["package4"] == "not told"


def test_a_folder_can_be_a_document_if_it_is_large(tmp_path: Path) -> None:
    packages(tmp_path / "site", 40)
    for number in range(40):
        (tmp_path / "site" / f"package{number}" / "inner" / "c.py").write_text("x = 1\n" * SMALLEST)
    made = write_code(tmp_path / "corpus", [tmp_path / "site"], per="folder")
    assert {name.split(".", 1)[1] for name in (*made.train, *made.validation)} == {"inner.txt"}


def test_places_without_packages_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        write_code(tmp_path / "corpus", [tmp_path / "absent"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="0 Python packages"):
        write_code(tmp_path / "corpus", [tmp_path / "empty"])
