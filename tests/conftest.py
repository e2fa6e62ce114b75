"""Settings of all tests."""

import os
import signal
import sys
from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests import ports

settings.register_profile("untimed", deadline=None)  # a limit on seconds would test the machine
settings.load_profile("untimed")

# Two workers of pytest share the cores; with a thread per core each, torch would have them wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell makes background processes ignore Ctrl-C, and so would all that tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def no_clients_of_other_tests() -> Iterator[None]:
    """s3fs keeps its clients, with their credentials, and servers of other tests are gone."""
    yield
    if "s3fs" in sys.modules:
        sys.modules["s3fs"].S3FileSystem.clear_instance_cache()


@pytest.fixture
def dead_port() -> Iterator[int]:
    """A port that refuses every connection."""
    with ports.dead_port() as port:
        yield port
