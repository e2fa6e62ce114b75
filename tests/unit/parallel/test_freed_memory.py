"""Freed memory is used again: counted in the pages that the system hands to this process."""

import resource

import torch

from brt_dist.parallel.device import keep_freed_memory

PAGES = 2**14  # of 4 kB: 64 MiB


def handed() -> int:
    """Pages that the system hands over while a large tensor is made and dropped."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(PAGES * 1024)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def test_a_large_tensor_is_made_of_freed_memory() -> None:
    keep_freed_memory()
    handed()
    assert handed() < PAGES / 10
