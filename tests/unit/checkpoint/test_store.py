"""Checkpoints of a world of one rank: what is written, what is refused, what is used instead."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from brt_dist.checkpoint.store import CheckpointStore
from brt_dist.config.schema import Config
from brt_dist.errors import CheckpointError
from brt_dist.parallel.layout import Layout, single_process

CURSOR = {"ordinal": [0], "offset": [64]}


@pytest.fixture(autouse=True)
def world() -> Iterator[None]:
    with single_process():
        yield


def config(**parallel: Any) -> Config:
    return Config.model_validate(
        {
            "data": {"dataset": "d", "streams": 1},
            "run": {"directory": "r", "steps": 9, "keep_checkpoints": 2},
            "parallel": parallel,
        }
    )


def store(folder: Path, dataset: str = "abc", report: list[str] | None = None, **parallel: Any) -> CheckpointStore:
    given = config(**parallel)
    lines = report if report is not None else []
    return CheckpointStore(folder, given, Layout.of(given, 0), dataset, lines.append)


def tensors(value: float) -> dict[str, torch.Tensor]:
    return {"weights/a": torch.full((3, 2), value), "memory/b": torch.full((2,), value, dtype=torch.bfloat16)}


def test_gives_back_what_was_saved(tmp_path: Path) -> None:
    folder = store(tmp_path).save(3, 99, CURSOR, tensors(1.5))
    assert folder.name == "step_00000003"
    found = store(tmp_path).load_newest()
    assert found is not None
    manifest, loaded = found
    assert (manifest.step, manifest.tokens, manifest.cursor) == (3, 99, CURSOR)
    for name, tensor in tensors(1.5).items():
        assert loaded[name].dtype == tensor.dtype and torch.equal(loaded[name], tensor)


def test_nothing_saved_is_nothing_found(tmp_path: Path) -> None:
    assert store(tmp_path / "none").load_newest() is None


def test_a_save_that_was_cut_short_is_no_checkpoint_and_is_swept(tmp_path: Path) -> None:
    store(tmp_path).save(1, 1, CURSOR, tensors(1.0))
    draft = tmp_path / ".step_00000002.draft"
    draft.mkdir()
    (draft / "rank_00000.safetensors").write_bytes(b"half")
    found = store(tmp_path).load_newest()
    assert found is not None and found[0].step == 1
    store(tmp_path).save(2, 2, CURSOR, tensors(2.0))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["latest", "step_00000001", "step_00000002"]


@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing", "manifest"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path: Path, damage: str) -> None:
    store(tmp_path).save(1, 1, CURSOR, tensors(1.0))
    folder = store(tmp_path).save(2, 2, CURSOR, tensors(2.0))
    file = folder / "rank_00000.safetensors"
    content = bytearray(file.read_bytes())
    if damage == "flipped":
        content[-1] ^= 1
        file.write_bytes(content)
    elif damage == "truncated":
        file.write_bytes(content[:-5])
    elif damage == "missing":
        file.unlink()
    else:
        (folder / "manifest.json").write_text("{")
    report: list[str] = []
    found = store(tmp_path, report=report).load_newest()
    assert found is not None and found[0].step == 1
    assert torch.equal(found[1]["weights/a"], tensors(1.0)["weights/a"])
    assert len(report) == 1 and "step_00000002" in report[0]


def test_when_all_are_damaged_the_run_does_not_start_anew(tmp_path: Path) -> None:
    folder = store(tmp_path).save(1, 1, CURSOR, tensors(1.0))
    (folder / "rank_00000.safetensors").unlink()
    with pytest.raises(CheckpointError, match="none of the 1 checkpoints"):
        store(tmp_path).load_newest()


def test_another_layout_dataset_or_format_is_refused(tmp_path: Path) -> None:
    folder = store(tmp_path).save(1, 1, CURSOR, tensors(1.0))
    with pytest.raises(CheckpointError, match=r"another layout \(zero_stage 1 -> 0\)"):
        store(tmp_path, zero_stage=0).load_newest()
    with pytest.raises(CheckpointError, match="another dataset"):
        store(tmp_path, dataset="xyz").load_newest()
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"format": 99}))
    report: list[str] = []
    with pytest.raises(CheckpointError):
        store(tmp_path, report=report).load_newest()
    assert "format 99" in report[0]


def test_the_newest_are_kept_and_a_step_can_be_saved_again(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        store(tmp_path).save(step, step, CURSOR, tensors(step))
    store(tmp_path).save(3, 3, CURSOR, tensors(7.0))
    assert sorted(p.name for p in tmp_path.glob("step_*")) == ["step_00000002", "step_00000003"]
    found = store(tmp_path).load_newest()
    assert found is not None and torch.equal(found[1]["weights/a"], tensors(7.0)["weights/a"])
