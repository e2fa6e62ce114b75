"""Loading a checkpoint: each rank gets its part, and the ranks of a layout together read it hardly more than once."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from brt_dist.checkpoint.loader import Checkpoint
from brt_dist.checkpoint.manifest import Manifest, folder_name
from brt_dist.checkpoint.ranges import LocalFile
from brt_dist.checkpoint.saver import Saver
from brt_dist.checkpoint.storage import FolderStorage
from brt_dist.config.schema import Config
from brt_dist.parallel.engine import build_engine
from brt_dist.parallel.layout import Layout, single_process
from brt_dist.parallel.pieces import LogicalTensor, Piece, Region
from tests.checkpoints import alone, manifest_of
from tests.scale.settings import small
from tests.scale.world import fake_world

STREAMS = 12
LAYOUTS: dict[str, dict[str, Any]] = {
    "one": {},
    "tp4": {"tensor": 4},
    "dp4": {"data": 4},
    "dp4-zero0": {"data": 4, "zero_stage": 0},
    "dp3-zero2": {"data": 3, "zero_stage": 2},
    "tp2-dp3-zero3": {"tensor": 2, "data": 3, "zero_stage": 3},
    "tp2-pp2-dp2": {"tensor": 2, "pipeline": 2, "data": 2},
}


def given(layout: dict[str, Any]) -> Config:
    config = small({**layout, "micro_batch": 1}, precision="fp32")
    sizes = {"width": 128, "head_dim": 32, "ffns.relu.width": 512, "vocab_size": 53}
    return config.model_copy(
        update={
            "model": config.model.changed(sizes),
            "data": config.data.model_copy(update={"streams": STREAMS}),
        }
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkpoint]:
    """A checkpoint in which all elements of a tensor are different."""
    storage, config = FolderStorage(tmp_path_factory.mktemp("checkpoints")), given({})
    with single_process() as device:
        engine = build_engine(config, Layout.of(config, 0), device, blank=True)
        pieces = [
            Piece(piece.tensor, piece.region, (torch.arange(piece.region.size) + 1000 * number).to(piece.tensor.dtype))
            for number, piece in enumerate(engine.pieces())
        ]
        saver = Saver(storage, alone(), lambda step: None)
        saver.save(manifest_of(1, [], {}), pieces)
        saver.wait()
        saver.close()
        engine.close()
    with Checkpoint.open(storage, folder_name(1)) as checkpoint:
        yield checkpoint


class Counted:
    """Counts bytes that are read of tensors, by their kind; headers are not counted."""

    def __init__(self, checkpoint: Checkpoint, patch: pytest.MonkeyPatch) -> None:
        self.bytes: Counter[str] = Counter()
        self._checkpoint, self._kind = checkpoint, ""
        read_into = LocalFile.read_into

        def counted(file: LocalFile, begin: int, buffer: memoryview) -> None:
            self.bytes[self._kind] += len(buffer)
            read_into(file, begin, buffer)

        patch.setattr(LocalFile, "read_into", counted)

    def read(self, tensor: LogicalTensor, region: Region) -> torch.Tensor:
        self._checkpoint.read(tensor, region.part(0, 0))  # opens the file
        self._kind = tensor.name.partition("/")[0]
        try:
            return self._checkpoint.read(tensor, region)
        finally:
            self._kind = ""


def sizes_of(manifest: Manifest) -> Counter[str]:
    sizes: Counter[str] = Counter()
    for name, entry in manifest.tensors.items():
        sizes[name.partition("/")[0]] += entry.bytes
    return sizes


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_rank_gets_its_part_and_all_together_read_little_more_than_the_checkpoint(
    layout: str, saved: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, size = given(LAYOUTS[layout]), sizes_of(saved.manifest)
    counted = Counted(saved, monkeypatch)
    for rank in range(config.parallel.world_size):
        with fake_world(config, rank) as world:
            engine = build_engine(config, world.layout, world.device, blank=True)
            engine.load(counted.read, 1)
            for piece in engine.pieces() if layout != "dp4-zero0" else ():  # there the others would send the rest
                assert torch.equal(piece.on_host(), saved.read(piece.tensor, piece.region)), piece.tensor.name
            engine.close()
    assert counted.bytes["weights"] <= 1.2 * size["weights"]
    assert counted.bytes["optimizer"] <= 1.2 * size["optimizer"]
    assert counted.bytes["weights"] >= size["weights"]
    # the recurrent state is whole on every tensor parallel rank
    assert counted.bytes["memory"] <= config.parallel.tensor * size["memory"]
