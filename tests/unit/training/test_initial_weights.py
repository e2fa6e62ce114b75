"""Weights that a run starts from: each rank hashes a share of the files and reads its part; all learn of damage."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from brt_dist.checkpoint.ranges import LocalFile
from brt_dist.config.schema import Config
from brt_dist.errors import CheckpointError
from brt_dist.export.weights import Weights
from brt_dist.kinds import WEIGHT_FORMATS
from brt_dist.model.model import BlockRecurrentModel
from brt_dist.model.parameters import logical_parameters
from brt_dist.parallel.layout import Layout, single_process
from brt_dist.parallel.pieces import LogicalTensor, Read, Region
from brt_dist.training.initial_weights import load_initial_weights
from tests.unit.model.networks import small

RANKS = 3


@pytest.fixture
def exported(tmp_path: Path) -> Iterator[tuple[Path, dict[str, torch.Tensor]]]:
    """A folder of several files, and the weights in it."""
    model = small(vocab_size=512)
    with single_process():
        tensors = {p.name: p.part(p.local.detach(), 0, 1) for p in logical_parameters(BlockRecurrentModel(model, 1))}
        WEIGHT_FORMATS["safetensors"].write(Weights.of(model, tensors), tmp_path / "weights", 4000)
        assert len(list((tmp_path / "weights").glob("*.safetensors"))) > RANKS
        yield tmp_path / "weights", tensors


class StubEngine:
    """Reads the first rows of each weight."""

    def __init__(self, rank: int, tensors: dict[str, torch.Tensor]) -> None:
        self.layout = Layout(tensor=RANKS, pipeline=1, data=1, micro_batch=1, streams=1, rank=rank)
        self.tensors, self.loaded = tensors, dict[str, torch.Tensor]()

    def load(self, read: Read, updates: int) -> None:
        for name, tensor in self.tensors.items():
            region = Region.whole(tuple(tensor.shape)).part(0, max(tensor.numel() // 4, 1))
            self.loaded[name] = read(LogicalTensor(f"weights/{name}", tuple(tensor.shape), torch.float32), region)


def start(folder: Path, engine: Any) -> None:
    settings = {
        "model": small(vocab_size=512).model_dump(),
        "data": {"dataset": "unused", "segment": 4, "streams": 3},
        "parallel": {"tensor": 1},
        "run": {"directory": "unused", "steps": 1, "init_from": str(folder)},
    }
    load_initial_weights(str(folder), Config.model_validate(settings), "tokenizer", engine)


def test_every_file_is_hashed_once_and_only_the_part_is_read(
    exported: tuple[Path, dict[str, torch.Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, tensors = exported
    hashed, read = [], [0]
    sha256, read_into = LocalFile.sha256, LocalFile.read_into

    def counted_sha256(file: LocalFile) -> str:
        before = read[0]
        hashed.append(str(file._path))
        try:
            return sha256(file)
        finally:
            read[0] = before

    def counted_read(file: LocalFile, begin: int, buffer: memoryview) -> None:
        read[0] += len(buffer)
        read_into(file, begin, buffer)

    monkeypatch.setattr(LocalFile, "sha256", counted_sha256)
    monkeypatch.setattr(LocalFile, "read_into", counted_read)
    monkeypatch.setattr(dist, "all_gather_object", lambda found, mine: found.__setitem__(slice(None), [mine] * RANKS))
    for rank in range(RANKS):
        engine = StubEngine(rank, tensors)
        start(folder, engine)
        for name, tensor in tensors.items():
            assert torch.equal(engine.loaded[name], tensor.flatten()[: max(tensor.numel() // 4, 1)])
    assert sorted(hashed) == sorted(str(path) for path in folder.glob("*.safetensors"))
    total = sum(4 * tensor.numel() for tensor in tensors.values())
    headers = sum(path.stat().st_size for path in folder.glob("*.safetensors")) - total
    assert read[0] <= RANKS * (total / 4 + 4 * len(tensors) + 2 * headers)


def test_damage_that_one_rank_finds_stops_all(
    exported: tuple[Path, dict[str, torch.Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, tensors = exported
    damaged = sorted(folder.glob("*.safetensors"))[1]
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    told: dict[int, str | None] = {}
    for rank in range(RANKS):

        def gather(found: list[str | None], mine: str | None, rank: int = rank) -> None:
            told[rank] = mine
            found[:] = ["found by another"] * RANKS

        monkeypatch.setattr(dist, "all_gather_object", gather)
        engine = StubEngine(rank, tensors)
        with pytest.raises(CheckpointError, match="found by another"):
            start(folder, engine)
        assert not engine.loaded
    assert {rank for rank, problem in told.items() if problem} == {1}
    assert f"{damaged} was altered" in str(told[1])
