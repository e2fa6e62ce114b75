"""Joining the ranks from a script."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from brt_dist.config.schema import Config
from brt_dist.errors import ConfigError
from brt_dist.parallel.start import joined


def config(folder: Path, **parallel: Any) -> Config:
    run = {"directory": folder, "steps": 1, "device": "cpu"}
    return Config.model_validate({"data": {}, "parallel": parallel, "run": run})


@pytest.fixture(autouse=True)
def no_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)


def test_a_process_that_was_started_alone_is_a_world_of_one(tmp_path: Path) -> None:
    with joined(config(tmp_path)) as (layout, device):
        assert (layout.rank, layout.world_size, device.kind) == (0, 1, "cpu")
        value = torch.ones(())
        dist.all_reduce(value)
        assert value == 1
    assert not dist.is_initialized()


def test_a_layout_of_more_processes_says_how_they_are_started(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="torchrun --nproc-per-node 2"), joined(config(tmp_path, tensor=2)):
        pass
