"""Megatron's layers need process groups: a world of one for the tests of this folder."""

from collections.abc import Iterator

import pytest
import torch

from brt_dist.parallel.layout import single_process


@pytest.fixture(scope="package", autouse=True)
def world_of_one() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with single_process():
        yield
    torch.set_num_threads(threads)
