"""Checkpoints of a world of one rank: what is written, what is refused, what is used instead."""

import json
import os
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from brt_dist.checkpoint.loader import Checkpoint, open_newest
from brt_dist.checkpoint.manifest import Manifest, folder_name
from brt_dist.checkpoint.saver import Saver
from brt_dist.checkpoint.storage import FolderStorage
from brt_dist.checkpoint.store import CheckpointStore
from brt_dist.checkpoint.verification import read_manifest, verify_files
from brt_dist.errors import CheckpointError, PlatformError
from brt_dist.parallel.layout import Layout, single_process
from brt_dist.parallel.pieces import LogicalTensor, Piece, Region
from tests.checkpoints import CONFIG, alone, make_checkpoint

CURSOR = {"ordinal": [0], "offset": [64]}
SCALE = LogicalTensor("weights/layers.0.norm.scale", (6,), torch.float32)
TABLE = LogicalTensor("weights/embedding.weight", (3, 2), torch.float32)
STATE = LogicalTensor("memory/layers.0/state", (2, 4, 3), torch.bfloat16)


@pytest.fixture(autouse=True)
def world() -> Iterator[None]:
    with single_process():
        yield


def manifest(step: int) -> Manifest:
    return Manifest(
        step=step, updates=step, tokens=99, cursor=CURSOR, evaluations={}, config={}, dataset="abc",
        versions={"torch": "2"}, saved_by={"tensor": 1}, files=(), tensors={},
    )  # fmt: skip


def pieces(value: float) -> list[Piece]:
    return [
        Piece(SCALE, Region.whole(SCALE.shape).part(0, 2), torch.full((2,), value)),
        Piece(SCALE, Region.whole(SCALE.shape).part(2, 6), torch.full((4,), value + 1)),
        Piece(TABLE, Region.whole(TABLE.shape), torch.full((6,), value)),
        Piece(STATE, Region.whole(STATE.shape), torch.full((24,), value, dtype=torch.bfloat16)),
    ]


def save(folder: Path, *steps: int) -> FolderStorage:
    storage = FolderStorage(folder)
    saver = Saver(storage, alone(), lambda step: None)
    for step in steps:
        saver.save(manifest(step), pieces(float(step)))
    saver.wait()
    saver.close()
    return storage


def newest(storage: FolderStorage, log: list[str] | None = None) -> Checkpoint | None:
    lines = log if log is not None else []
    return open_newest(storage, 0, 1, lambda problem: [problem], lambda manifest: None, lines.append)


def test_gives_back_what_was_saved_and_anyone_can_open_it(tmp_path: Path) -> None:
    storage = save(tmp_path, 3)
    checkpoint = newest(storage)
    assert checkpoint is not None
    with checkpoint:
        found = checkpoint.manifest
        assert (found.step, found.tokens, found.cursor) == (3, 99, CURSOR)
        assert checkpoint.read(SCALE, Region.whole((6,)).part(1, 4)).tolist() == [3.0, 4.0, 4.0]
        state = checkpoint.read(STATE, Region.whole(STATE.shape))
        assert state.dtype == torch.bfloat16 and torch.equal(state, torch.full((24,), 3.0, dtype=torch.bfloat16))
    tensors = load_file(tmp_path / folder_name(3) / "weights/layers.0.safetensors")
    assert {name: value.tolist() for name, value in tensors.items()} == {"layers.0.norm.scale": [3, 3, 4, 4, 4, 4]}
    assert storage.latest() == folder_name(3)


def test_training_may_go_on_as_soon_as_save_returns(tmp_path: Path) -> None:
    saver = Saver(FolderStorage(tmp_path), alone(), lambda step: None)
    given = pieces(1.0)
    saver.save(manifest(1), given)
    for piece in given:
        piece.values.fill_(-7.0)
    saver.wait()
    (saved,) = saver.finished()
    assert saver.finished() == []
    saver.close()
    assert (saved.step, saved.name) == (1, folder_name(1)) and saved.bytes > 0
    with Checkpoint.open(FolderStorage(tmp_path), folder_name(1)) as checkpoint:
        assert checkpoint.whole(TABLE.name).tolist() == [[1, 1], [1, 1], [1, 1]]


def test_nothing_saved_is_nothing_found(tmp_path: Path) -> None:
    assert newest(FolderStorage(tmp_path / "none")) is None


def test_a_save_that_was_cut_short_is_no_checkpoint_and_is_swept(tmp_path: Path) -> None:
    storage = save(tmp_path, 1)
    storage.prepare(folder_name(2))
    with storage.create(folder_name(2), "weights/embedding.safetensors") as file:
        file.write(b"half")
    assert storage.names() == [folder_name(1)]
    save(tmp_path, 4)
    assert storage.names() == [folder_name(1), folder_name(4)]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".step")]


@pytest.mark.parametrize("fault", ["truncated", "flipped", "missing", "no manifest", "manifest flipped", "newer"])
def test_a_damaged_one_is_named_and_the_one_before_it_used(tmp_path: Path, fault: str) -> None:
    storage = save(tmp_path, 1, 2)
    folder = tmp_path / folder_name(2)
    file, about = folder / "weights/embedding.safetensors", folder / "manifest.json"
    if fault == "truncated":
        os.truncate(file, file.stat().st_size - 1)
    elif fault == "flipped":
        flip(file, -3)
    elif fault == "missing":
        file.unlink()
    elif fault == "no manifest":
        about.write_text("{")
    elif fault == "manifest flipped":
        about.write_text(about.read_text().replace('"tokens": 99', '"tokens": 98'))
    else:
        about.write_text(json.dumps({**json.loads(about.read_text()), "format": 3}))
    log: list[str] = []
    checkpoint = newest(storage, log)
    assert checkpoint is not None and checkpoint.manifest.step == 1
    checkpoint.close()
    says = {
        "truncated": "bytes, but the manifest says", "flipped": "was altered", "missing": "is missing",
        "no manifest": "is damaged", "manifest flipped": "digest", "newer": "newer version",
    }  # fmt: skip
    (line,) = log
    assert folder_name(2) in line and says[fault] in line


def test_when_none_is_whole_nothing_is_started_anew(tmp_path: Path) -> None:
    storage = save(tmp_path, 1)
    flip(tmp_path / folder_name(1) / "memory/layers.0.safetensors", -1)
    with pytest.raises(CheckpointError, match="none of the 1 checkpoints"):
        newest(storage)


def test_a_step_that_is_saved_again_replaces_the_damaged_one(tmp_path: Path) -> None:
    storage = save(tmp_path, 1, 2)
    flip(tmp_path / folder_name(2) / "weights/embedding.safetensors", -1)
    save(tmp_path, 2)
    log: list[str] = []
    checkpoint = newest(storage, log)
    assert checkpoint is not None and checkpoint.manifest.step == 2 and log == []
    checkpoint.close()


def test_a_file_system_that_does_not_rename_over_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace = os.replace

    def strict(source: Any, target: Any) -> None:
        if os.path.exists(target):
            raise FileExistsError(17, "File exists", str(target))
        replace(source, target)

    monkeypatch.setattr(os, "replace", strict)
    storage = save(tmp_path, 1, 2)
    assert storage.latest() == folder_name(2)


def test_a_place_that_cannot_be_written_is_one_clear_message(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    saver = Saver(FolderStorage(tmp_path / "file" / "checkpoints"), alone(), lambda step: None)
    saver.save(manifest(1), pieces(1.0))
    with pytest.raises(CheckpointError, match=r"could not save checkpoint step_00000001: .*file/checkpoints"):
        saver.wait()
    saver.close()


def test_another_shape_or_name_is_refused_before_it_is_read(tmp_path: Path) -> None:
    storage = save(tmp_path, 1)
    with Checkpoint.open(storage, folder_name(1)) as checkpoint:
        wide = LogicalTensor(TABLE.name, (3, 4), torch.float32)
        with pytest.raises(CheckpointError, match=r"shape \(3, 2\), but this run needs \(3, 4\)"):
            checkpoint.read(wide, Region.whole(wide.shape))
        other = LogicalTensor("weights/layers.9.norm.scale", (6,), torch.float32)
        with pytest.raises(CheckpointError, match=r"has no weights/layers\.9"):
            checkpoint.read(other, Region.whole(other.shape))


def test_memory_of_more_and_of_fewer_streams(tmp_path: Path) -> None:
    storage = save(tmp_path, 1)
    with Checkpoint.open(storage, folder_name(1)) as checkpoint:
        more = LogicalTensor(STATE.name, (3, 4, 3), torch.bfloat16)
        grown = checkpoint.read(more, Region.of_box(((1, 3), (0, 4), (0, 3)))).view(2, 4, 3)
        assert grown[0].eq(1).all() and grown[1].eq(0).all()
        assert checkpoint.read(more, Region.of_box(((2, 3), (0, 4), (0, 3)))).eq(0).all()
        fewer = LogicalTensor(STATE.name, (1, 4, 3), torch.bfloat16)
        assert checkpoint.read(fewer, Region.whole(fewer.shape)).eq(1).all()


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def test_two_runs_cannot_save_to_one_place(tmp_path: Path) -> None:
    with (
        FolderStorage(tmp_path).claimed(print),
        pytest.raises(PlatformError, match="another run is saving its checkpoints to"),
        FolderStorage(tmp_path).claimed(print),
    ):
        pass
    with FolderStorage(tmp_path).claimed(print):
        pass


def test_another_tokenizer_is_refused_even_where_other_data_is_allowed(tmp_path: Path) -> None:
    allowed = CONFIG.model_copy(update={"run": CONFIG.run.model_copy(update={"allow": ("data.dataset",)})})
    storage, layout = FolderStorage(tmp_path), Layout.of(CONFIG, 0)
    made = make_checkpoint(storage, 3, tokenizer="a" * 64)
    assert Manifest.parse(made.dump(), "x").tokenizer == "a" * 64
    for tokenizer, refused in (("a" * 64, False), ("", False), ("b" * 64, True)):
        store = CheckpointStore(storage, allowed, layout, "other data", print, tokenizer=tokenizer)
        with pytest.raises(CheckpointError, match=r"run\.allow cannot change that") if refused else nullcontext():
            store._check_belongs(made)
        store.close()


def test_memory_is_kept_in_the_newest_only_if_so_wished(tmp_path: Path) -> None:
    run = CONFIG.run.model_copy(update={"keep_checkpoints": 3, "keep_memory": 1, "keep_best": 0})
    storage, config = FolderStorage(tmp_path), CONFIG.model_copy(update={"run": run})
    made = [make_checkpoint(storage, step) for step in (1, 2, 3, 4)]
    store = CheckpointStore(storage, config, Layout.of(CONFIG, 0), "abc", print)
    store._remove_old(4)
    store._remove_old(4)  # again: nothing is left to do
    store.close()
    assert storage.names() == [folder_name(step) for step in (2, 3, 4)]
    for step in (2, 3, 4):
        found = read_manifest(storage, folder_name(step))
        assert not verify_files(storage, folder_name(step), found, lambda entry: None)
        assert found.has_memory == (step == 4) and (found.step, found.tokens) == (step, 100 * step)
        memory = list((tmp_path / folder_name(step)).glob("memory/*"))
        assert bool(memory) == (step == 4)
        kept = {name for name in made[0].tensors if step == 4 or not name.startswith("memory/")}
        assert found.tensors.keys() == kept
    state = LogicalTensor("memory/layers.0/state", (2, 3, 4), torch.float32)
    with Checkpoint.open(storage, folder_name(2)) as checkpoint:
        assert checkpoint.read(state, Region.whole(state.shape)).eq(0).all()
        assert checkpoint.whole("weights/embedding.weight").eq(2).all()
    with Checkpoint.open(storage, folder_name(4)) as checkpoint:
        assert checkpoint.read(state, Region.whole(state.shape)).eq(4).all()
        other = LogicalTensor("memory/layers.1/state", (2, 3, 4), torch.float32)
        with pytest.raises(CheckpointError, match=r"has no memory/layers\.1"):  # it has others: another model's
            checkpoint.read(other, Region.whole(other.shape))


def test_a_piece_may_lie_in_several_tensors(tmp_path: Path) -> None:
    parts = [torch.arange(12.0).bfloat16(), torch.arange(12.0, 24.0).bfloat16()]
    saver = Saver(FolderStorage(tmp_path), alone(), lambda step: None)
    saver.save(manifest(1), [Piece(STATE, Region.whole(STATE.shape), parts[0], (parts[1],))])
    saver.wait()
    saver.close()
    with Checkpoint.open(FolderStorage(tmp_path), folder_name(1)) as checkpoint:
        assert checkpoint.read(STATE, Region.whole(STATE.shape)).tolist() == list(range(24))
