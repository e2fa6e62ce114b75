"""What a rank on a CPU does with memory that it has freed."""

import ctypes
import os
import subprocess
import sys

import pytest

from brt_dist.config.environment import CPU_DEFAULTS

PAGES = 2**26 // os.sysconf("SC_PAGE_SIZE")  # of a tensor

COUNT = """
import ctypes, resource, sys
ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # no huge pages, of which each fault brings many pages
import torch
from brt_dist.parallel.device import keep_freed_memory
if sys.argv[1:]:
    keep_freed_memory()
for _ in range(5):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(*arguments: str) -> list[int]:
    """Pages that the system gives a process for each of five tensors of 64 MiB that it makes and drops."""
    command, environment = [sys.executable, "-c", COUNT, *arguments], {**os.environ, **CPU_DEFAULTS}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return [int(line) for line in ran.stdout.split()]


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="only glibc has mallopt")
def test_freed_memory_is_used_again() -> None:
    given_back, kept = faults(), faults("keep")
    assert min(given_back) > 0.9 * PAGES
    assert kept[0] > 0.9 * PAGES and max(kept[1:]) < 0.01 * PAGES
