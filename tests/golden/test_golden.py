"""The model computes what the reference implementations compute."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from brt_dist.parallel.layout import single_process
from tests.golden.__main__ import report
from tests.golden.check import compare

DATA = Path(__file__).parent / "data"
KINDS = DATA / "kinds"
FILES = [*sorted(DATA.glob("*.npz")), *sorted(KINDS.glob("*.npz"))]


@pytest.fixture(scope="module")
def world_of_one() -> Iterator[None]:
    with single_process():
        yield


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
@pytest.mark.usefixtures("world_of_one")
def test_golden(path: Path) -> None:
    found = compare(path)
    assert found.ok, found


def test_the_data_is_there() -> None:
    assert len(list(DATA.glob("*.npz"))) >= 7
    assert {path.stem for path in KINDS.glob("*.npz")} == set(json.loads((KINDS / "index.json").read_text()))


@pytest.mark.usefixtures("world_of_one")
@pytest.mark.parametrize(
    "name", ["seg1/logits", "seg2/recurrent_state/layer1", "seg0/xl_cache_keys/layer0", "seg1/grad/embed/embedding"]
)
def test_a_wrong_number_is_found(tmp_path: Path, name: str) -> None:
    with np.load(DATA / "fixed_skip.npz") as arrays:
        changed = {key: np.array(arrays[key]) for key in arrays.files}
    changed[name].flat[5] += 1e-3 * np.abs(changed[name]).max()
    np.savez(tmp_path / "changed.npz", **changed)
    (tmp_path / "changed.json").write_text((DATA / "fixed_skip.json").read_text())
    assert not compare(tmp_path / "changed.npz").ok


@pytest.mark.usefixtures("world_of_one")
def test_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line per file; 2 for a kind that does not exist here, 1 for what cannot be read or is wrong."""
    good, other, broken, absent = (
        DATA / "fixed_skip.npz",
        tmp_path / "other.npz",
        tmp_path / "broken.npz",
        tmp_path / "absent.npz",
    )
    settings = json.loads(good.with_suffix(".json").read_text())
    broken.with_suffix(".json").write_text(json.dumps(settings))
    settings["config"] |= {"gate": "full"}
    other.with_suffix(".json").write_text(json.dumps(settings))
    other.write_bytes(good.read_bytes())
    broken.write_bytes(good.read_bytes()[:100_000])

    assert report([good]) == 0
    assert capsys.readouterr().out.rstrip().endswith(" ok")
    assert report([good, other]) == 2
    assert "no such kind here: gate full" in capsys.readouterr().out
    assert report([broken, other, absent]) == 1
    lines = capsys.readouterr().out.splitlines()[1:]
    assert f"{broken}: not a golden file" in lines[0]
    assert f"{absent}: not a golden file" in lines[2]


@pytest.mark.parametrize("path", sorted(KINDS.glob("*.npz")), ids=lambda path: path.stem)
def test_every_array_of_a_kind_is_compared_and_its_name_does_not_matter(tmp_path: Path, path: Path) -> None:
    """A file under another name is known by its arrays; a wrong number in any of them is found."""
    entry = json.loads((KINDS / "index.json").read_text())[path.stem]
    (tmp_path / "index.json").write_text(json.dumps({"other": entry}))
    with np.load(path) as arrays:
        golden = {key: np.array(arrays[key]) for key in arrays.files}
    for name in list(golden)[:: 1 + len(golden) // 25]:
        array = golden[name]
        changed = array.copy()
        size = 1 if array.dtype.kind in "iu" else 1e-2 * max(1.0, np.abs(array).max())
        changed.flat[changed.size * 2 // 3 :: 5] += np.array(size).astype(array.dtype)  # not one: it may be unused
        np.savez(tmp_path / "other.npz", **golden | {name: changed})
        # a bias of keys adds the same to all logits of a query
        assert compare(tmp_path / "other.npz").ok == (name == "bk"), name


def test_kinds_that_do_not_exist(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "index.json").write_text(json.dumps({"alien": {"what": "nothing known"}, "linear_attention": {}}))
    for name in ("alien", "unmentioned", "linear_attention"):
        np.savez(tmp_path / f"{name}.npz", **{array: np.zeros(3) for array in ("Q", "x", "y", "z", "gate")})
    assert report([tmp_path / "alien.npz"]) == 2
    assert "no such kind here: alien" in capsys.readouterr().out
    assert report([tmp_path / "unmentioned.npz"]) == 2
    assert report([tmp_path / "linear_attention.npz"]) == 1
    assert "no array K, V" in capsys.readouterr().out


def test_command_line() -> None:
    command = [sys.executable, "-m", "tests.golden", str(DATA / "w144_fixed_skip_s8.npz")]
    run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[1].startswith("w144_fixed_skip_s8 ")
