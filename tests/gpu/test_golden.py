"""Golden files on a GPU: float32 is real float32 there."""

from pathlib import Path

import pytest

from brt_dist.parallel.device import Device
from tests.golden.check import compare
from tests.golden.test_golden import FILES

NOT_A_MODEL = {"cfg_anbn", "cfg_dyck_k2_m4"}  # counts of strings, no tensors


@pytest.mark.parametrize("path", [path for path in FILES if path.stem not in NOT_A_MODEL], ids=lambda path: path.stem)
def test_golden(gpu: Device, path: Path) -> None:
    with gpu.torch:
        found = compare(path)
    assert found.ok, found
