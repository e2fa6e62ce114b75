"""Whatever a file claims, none of its code is run, no memory is allocated for it, and no other file is touched."""

import json
import pickle
import subprocess
import sys
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from brt_dist.checkpoint.manifest import MANIFEST, MANIFEST_LIMIT, FileEntry, TensorEntry, folder_name
from brt_dist.checkpoint.storage import FolderStorage
from brt_dist.checkpoint.verification import read_manifest, verify_files
from brt_dist.errors import CheckpointError
from tests.checkpoints import make_checkpoint

NAME = folder_name(1)
EMBEDDING = "weights/embedding.safetensors"
ROOT = Path(__file__).parents[3]


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def rewrite(storage: FolderStorage, folder: Path, **changes: Any) -> None:
    """Replace fields of the manifest, with a matching digest, as an attacker would."""
    manifest = replace(read_manifest(storage, NAME), **changes)
    (folder / NAME / MANIFEST).write_text(manifest.dump())


def plant(storage: FolderStorage, folder: Path, content: bytes) -> None:
    """Replace a tensor file by `content`, with a matching manifest."""
    (folder / NAME / EMBEDDING).write_bytes(content)
    files = [
        FileEntry(EMBEDDING, len(content), sha256(content).hexdigest()) if entry.name == EMBEDDING else entry
        for entry in read_manifest(storage, NAME).files
    ]
    tensors = {
        name: TensorEntry(entry.file, entry.dtype, (0,)) if entry.file == EMBEDDING else entry
        for name, entry in read_manifest(storage, NAME).tensors.items()
    }
    rewrite(storage, folder, files=tuple(files), tensors=tensors)


@pytest.fixture
def storage(tmp_path: Path) -> FolderStorage:
    found = FolderStorage(tmp_path)
    make_checkpoint(found, 1)
    return found


@pytest.mark.parametrize("name", ["../x.safetensors", "weights/../../x.safetensors", "/etc/passwd", "weights/x.pt", ""])
def test_names_that_lead_out_of_the_folder(storage: FolderStorage, tmp_path: Path, name: str) -> None:
    rewrite(storage, tmp_path, files=(FileEntry(name, 1, ""),), tensors={})
    with pytest.raises(CheckpointError, match="is not a valid name of a tensor file"):
        read_manifest(storage, NAME)


@pytest.mark.parametrize(
    ("tensor", "says"),
    [
        (TensorEntry(EMBEDDING, "F32", (1 << 40, 1 << 40)), " exceed its "),
        (TensorEntry(EMBEDDING, "F32", (-1, -(1 << 40))), "cannot be F32"),
        (TensorEntry(EMBEDDING, "OBJECT", (1,)), "cannot be OBJECT"),
        (TensorEntry("weights/other.safetensors", "F32", (1,)), "not one of its files"),
    ],
)
def test_tensors_that_cannot_be(storage: FolderStorage, tmp_path: Path, tensor: TensorEntry, says: str) -> None:
    rewrite(storage, tmp_path, tensors={"weights/embedding.weight": tensor})
    with pytest.raises(CheckpointError, match=says):
        read_manifest(storage, NAME)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"format": 2, "files": "x"}', '{"format": 2}', "null", "\x00", '{"format": [2]}']
)
def test_manifests_that_are_none(storage: FolderStorage, tmp_path: Path, text: str) -> None:
    (tmp_path / NAME / MANIFEST).write_text(text)
    with pytest.raises(CheckpointError, match=NAME):
        read_manifest(storage, NAME)


def test_fields_of_another_type_are_told(storage: FolderStorage, tmp_path: Path) -> None:
    rewrite(storage, tmp_path, step="1")
    with pytest.raises(CheckpointError, match=r"step: Input should be a valid integer"):
        read_manifest(storage, NAME)


def test_a_manifest_without_end_is_not_read(storage: FolderStorage, tmp_path: Path) -> None:
    with open(tmp_path / NAME / MANIFEST, "r+b") as file:
        file.truncate(MANIFEST_LIMIT + 1)
    with pytest.raises(CheckpointError, match="too large"):
        read_manifest(storage, NAME)


def test_a_pickle_is_refused_and_not_run(storage: FolderStorage, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    for content in (pickle.dumps(Bomb(mark)), b"\x80" * 8 + pickle.dumps(Bomb(mark))):
        plant(storage, tmp_path, content)
        (problem,) = verify_files(storage, NAME, read_manifest(storage, NAME), lambda entry: None)
        assert "is not a readable tensor file" in problem
    assert not mark.exists()


def test_a_header_that_claims_more_than_there_is(storage: FolderStorage, tmp_path: Path) -> None:
    header = {"embedding.weight": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}
    text = json.dumps(header).encode()
    for content in (len(text).to_bytes(8, "little") + text + bytes(64), (1 << 62).to_bytes(8, "little") + text):
        plant(storage, tmp_path, content)
        (problem,) = verify_files(storage, NAME, read_manifest(storage, NAME), lambda entry: None)
        assert "is not a readable tensor file" in problem


def test_claims_cost_no_memory(storage: FolderStorage, tmp_path: Path) -> None:
    """In a process that may use 1 GB more, claims of terabytes are refused with a message."""
    rewrite(storage, tmp_path, tensors={"weights/embedding.weight": TensorEntry(EMBEDDING, "F32", (1 << 38,))})
    program = (
        "import resource, sys\n"
        "from launch.cli import main\n"
        "from brt_dist.checkpoint import report\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30),) * 2)\n"
        "main(['checkpoint', 'verify', sys.argv[1]])"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 12 and " exceed its " in done.stderr


def test_nothing_that_loads_knows_pickle() -> None:
    """`torch.load`, `pickle` and `allow_pickle=True` are in no module that reads files."""
    for path in [*ROOT.glob("brt_dist/**/*.py"), *ROOT.glob("launch/**/*.py"), *ROOT.glob("pipelines/**/*.py")]:
        text = path.read_text()
        for word in ("torch.load", "import pickle", "allow_pickle=True", "joblib", "yaml.load(", "yaml.unsafe"):
            assert word not in text, f"{path} has {word}"
