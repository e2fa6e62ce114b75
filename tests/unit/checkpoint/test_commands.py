"""`brt checkpoint`: what it reports, removes and refuses."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from brt_dist.checkpoint.manifest import folder_name
from brt_dist.checkpoint.storage import FolderStorage
from brt_dist.config.loading import dump
from launch.cli import main
from tests.checkpoints import CONFIG, TENSORS, make_checkpoint

EMBEDDING = "weights/embedding.safetensors"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run directory with checkpoints of the steps 1 to 5; step 2 is the best."""
    folder = tmp_path / "run"
    storage = FolderStorage(folder / "checkpoints")
    for step in range(1, 6):
        make_checkpoint(storage, step, evaluations={"validation/carried": 2.0 if step == 2 else 3.0 + step})
    (folder / "config.yaml").write_text(dump(CONFIG))
    return folder


def brt(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        main(["checkpoint", *map(str, arguments)])
    out, err = capsys.readouterr()
    assert isinstance(end.value.code, int)
    return end.value.code, out, err


def answer(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, Any]:
    code, out, _ = brt(capsys, *arguments, "--json")
    return code, json.loads(out.splitlines()[0])


def file_of(run: Path, step: int, name: str = EMBEDDING) -> Path:
    return run / "checkpoints" / folder_name(step) / name


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def steps_left(run: Path) -> list[int]:
    return [int(name.removeprefix("step_")) for name in FolderStorage(run / "checkpoints").names()]


def test_list(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.truncate(file_of(run, 3), 10)
    file_of(run, 4, "manifest.json").write_text("{")
    code, out, err = brt(capsys, "list", run)
    assert (code, err) == (0, "")
    head, *lines = out.splitlines()
    assert head.split() == ["step", "when", "size", "bits/token", "saved", "by", "intact"]
    assert lines[1].startswith("   2  2020-09-1") and lines[1].endswith("    2.0000  tp2 dp2 zero1  yes")
    assert "has 10 bytes, but the manifest says" in lines[2] and "manifest.json is damaged" in lines[3]
    rows = answer(capsys, "list", run)[1]["checkpoints"]
    assert [row["step"] for row in rows if row["problem"] is None] == [1, 2, 5]
    sizes = [path.stat().st_size for path in file_of(run, 1, "").rglob("*.safetensors")]
    assert rows[0]["bytes"] == sum(sizes) and rows[0]["bits_per_token"] == 4.0


def test_show(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = answer(capsys, "show", run)[1]
    assert (found["step"], found["tokens"], found["streams"]) == (5, 500, 2)
    assert {name: tuple(entry["shape"]) for name, entry in found["tensors"].items()} == TENSORS
    assert found["kinds"]["weights"]["tensors"] == 2
    code, out, _ = brt(capsys, "show", run, "2")
    assert code == 0 and "bits/token validation/carried  2.0000" in out
    assert "weights/layers.0.mlp.hidden.weight  F32   8x4" in out
    code, _, err = brt(capsys, "show", run, "7")
    assert code == 12 and "no checkpoint of step 7; nearest: 5" in err


def test_places_have_several_names(run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    place = run / "checkpoints"
    assert len(answer(capsys, "list", place)[1]["checkpoints"]) == 5
    assert answer(capsys, "show", place / folder_name(2))[1]["step"] == 2
    for where, says in ((tmp_path / "none", "does not exist"), (tmp_path, "neither a run directory nor a folder")):
        code, _, err = brt(capsys, "list", where)
        assert code == 12 and says in err
    elsewhere = CONFIG.model_copy(update={"run": CONFIG.run.model_copy(update={"checkpoints": str(place)})})
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.yaml").write_text(dump(elsewhere))
    assert len(answer(capsys, "list", tmp_path / "other")[1]["checkpoints"]) == 5


def test_verify_names_what_is_damaged(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, found = answer(capsys, "verify", run)
    assert code == 0 and found["ok"] and len(found["checkpoints"]) == 5
    flip(file_of(run, 2))
    file_of(run, 4, "memory/layers.0.safetensors").unlink()
    code, out, err = brt(capsys, "verify", run, "--json")
    found = json.loads(out.splitlines()[0])
    assert code == 12 and not found["ok"]
    assert [row["checkpoint"] for row in found["checkpoints"] if not row["ok"]] == [folder_name(2), folder_name(4)]
    assert "2 of 5 checkpoints are damaged" in err
    assert f"{file_of(run, 2)} was altered" in err and f"{folder_name(4)}/memory/layers.0.safetensors is missing" in err
    assert brt(capsys, "verify", run, "1", "5", "--threads", "2")[0] == 0
    assert brt(capsys, "verify", run, "1", "2")[0] == 12


def test_prune_as_the_run_would(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, found = answer(capsys, "prune", run, "--dry-run")
    assert code == 0 and found["removed"] == [folder_name(1), folder_name(3)] and steps_left(run) == [1, 2, 3, 4, 5]
    code, out, _ = brt(capsys, "prune", run)
    assert code == 0 and steps_left(run) == [2, 4, 5]
    assert out.splitlines()[0].split() == [folder_name(1), "removed"]
    assert out.splitlines()[-1].startswith("2 removed, 3 kept")


def test_prune_as_told(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer(capsys, "prune", run / "checkpoints", "--keep", "1", "--every", "3", "--best", "0")
    assert steps_left(run) == [3, 5]


def test_prune_never_takes_the_newest_whole_one(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flip(file_of(run, 5))
    file_of(run, 4).unlink()
    code, found = answer(capsys, "prune", run, "--keep", "1", "--best", "0")
    assert code == 0 and set(found["damaged"]) == {folder_name(4), folder_name(5)}
    assert steps_left(run) == [3, 4, 5]
    flip(file_of(run, 3))
    code, _, err = brt(capsys, "prune", run, "--keep", "1")
    assert code == 12 and "none of the 3 checkpoints" in err and steps_left(run) == [3, 4, 5]


def test_commands_do_without_torch(run: Path) -> None:
    program = (
        "import sys; from launch.cli import main\n"
        "for command in ('list', 'show', 'verify', 'prune'):\n"
        "    try: main(['checkpoint', command, sys.argv[1]])\n    except SystemExit as end: assert end.code == 0\n"
        "print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(run)], capture_output=True, text=True, check=True)
    assert not {"torch", "ray", "mlflow", "deepspeed"} & set(done.stderr.split())
