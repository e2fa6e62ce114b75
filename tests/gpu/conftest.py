"""One GPU, or the tests are skipped."""

from collections.abc import Iterator

import pytest
import torch

from brt_dist.parallel.device import Device
from brt_dist.parallel.layout import single_process


@pytest.fixture(autouse=True)
def needs_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU")


@pytest.fixture(scope="module")
def gpu() -> Iterator[Device]:
    """A world of one process on the GPU."""
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    with single_process("cuda") as device:
        yield device
