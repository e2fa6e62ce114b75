"""Environment variables of the ranks: which ones the config sets, and which ones the launcher passes on."""

import re
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Annotated, Any

from pydantic import BeforeValidator

# What users export in the shell of `brt train` and expect on every node; * stands for any text.
PASSED_ON = (
    "NCCL_*",
    "GLOO_*",
    "UCX_*",
    "FI_*",
    "CUDA_DEVICE_MAX_CONNECTIONS",
    "CUDA_LAUNCH_*",
    "CUBLAS_*",
    "TORCH_*",
    "TORCHINDUCTOR_*",
    "PYTORCH_*",
    "TRITON_*",
    "DS_*",
    "LD_LIBRARY_PATH",
    "OMP_NUM_THREADS",
    "GLIBC_TUNABLES",
    "PYTHONPATH",
    "PYTHONWARNINGS",
    "PYTHONFAULTHANDLER",
    "HF_*",
    "AWS_*",
    "GOOGLE_*",
    "FSSPEC_*",
    "BRT_*",
)
# What NCCL needs on clusters but does not set by itself: it then says why it failed, and a link that is down for
# seconds, as InfiniBand and RoCE links sometimes are, does not end the run: a packet is retried after
# 4.096 us * 2^22 = 17 s, up to NCCL_IB_RETRY_CNT times.
NETWORK_DEFAULTS = {"NCCL_DEBUG": "WARN", "NCCL_IB_TIMEOUT": "22"}
# Settings of the C library for ranks on CPUs.  A tensor begins at a multiple of 64 bytes, which leaves a few bytes
# before and after it.  By default they are kept for small requests, so the hole that a freed tensor leaves is too small
# for the next tensor of its size, and the process grows.  Large pages take less time to clear and to find.
CPU_DEFAULTS = {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0:glibc.malloc.hugetlb=1"}
# What tells a process which rank it is: only the launcher knows.
_OF_THE_LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*$")
_SECRET_WORDS = {"SECRET", "TOKEN", "PASSWORD", "PASSWD", "CREDENTIALS", "KEY"}


def _texts(given: Any) -> Any:
    """Turns numbers into text, since people write NCCL_IB_DISABLE: 1; YAML reads an empty mapping as null."""
    if not isinstance(given, Mapping):
        return {} if given is None else given
    numbers = {name: str(value) for name, value in given.items() if type(value) in (int, float)}
    return {**given, **numbers}


Variables = Annotated[dict[str, str], BeforeValidator(_texts)]


def for_ranks(defaults: Mapping[str, str], own: Mapping[str, str], chosen: Mapping[str, str]) -> dict[str, str]:
    """What the config adds to a rank's environment `own`: all that it sets, and the defaults that `own` lacks."""
    return {**{name: value for name, value in defaults.items() if name not in own}, **chosen}


def passed_on(patterns: Sequence[str], environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of `environment` whose names match one of `patterns`."""
    return {
        name: value for name, value in environment.items() if any(fnmatchcase(name, pattern) for pattern in patterns)
    }


def broken_variables(variables: Mapping[str, str], key: str = "launch.environment") -> Iterator[str]:
    """A message for each variable that the key of the config cannot hold."""
    for name in variables:
        if not _NAME.match(name):
            yield f"{key}: {name!r} is not a variable name; example: NCCL_DEBUG"
        elif name in _OF_THE_LAUNCHER:
            yield f"{key}: {name} is different for every rank, and the launcher sets it; remove it"
        elif _SECRET_WORDS & set(name.upper().split("_")):
            yield (
                f"{key}: {name} looks like a secret, which config.yaml must not hold; nearest: export "
                "it where `brt train` runs, and list its name in launch.pass_environment"
            )
