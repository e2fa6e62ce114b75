"""Environment variables of the ranks: which are set by the config, and which are passed on from the launcher."""

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
# What NCCL needs on clusters and does not do by itself.  It says why it failed; and a link that is down for seconds, as
# links of InfiniBand and RoCE sometimes are, does not end the run: a packet is tried again for 4.096 us * 2^22 = 17 s,
# up to NCCL_IB_RETRY_CNT times.
NETWORK_DEFAULTS = {"NCCL_DEBUG": "WARN", "NCCL_IB_TIMEOUT": "22"}
# What the C library of ranks on CPUs is to do.  A tensor begins at a multiple of 64 bytes, and the few bytes before and
# after it are left over.  By default they are kept for small requests, so that the hole of a tensor that is freed is
# too small for the next one of its size, and the process grows.  Large pages take less time to clear and to find.
CPU_DEFAULTS = {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0:glibc.malloc.hugetlb=1"}
# What says which rank a process is: only the launcher knows.
_OF_THE_LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*$")
_SECRET_WORDS = {"SECRET", "TOKEN", "PASSWORD", "PASSWD", "CREDENTIALS", "KEY"}


def _texts(given: Any) -> Any:
    """Numbers as text, since NCCL_IB_DISABLE: 1 is what people write; YAML reads an empty mapping as nothing."""
    if not isinstance(given, Mapping):
        return {} if given is None else given
    numbers = {name: str(value) for name, value in given.items() if type(value) in (int, float)}
    return {**given, **numbers}


Variables = Annotated[dict[str, str], BeforeValidator(_texts)]


def for_ranks(defaults: Mapping[str, str], own: Mapping[str, str], chosen: Mapping[str, str]) -> dict[str, str]:
    """What the config adds to the environment `own` of a rank: all that it chooses, and defaults that `own` lacks."""
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
            yield f"{key}: {name!r} is not a name of a variable; example: NCCL_DEBUG"
        elif name in _OF_THE_LAUNCHER:
            yield f"{key}: {name} is different for every rank, and the launcher sets it; remove it"
        elif _SECRET_WORDS & set(name.upper().split("_")):
            yield (
                f"{key}: {name} looks like a secret, and config.yaml is no place for one; nearest: export "
                "it where `brt train` runs, and list its name in launch.pass_environment"
            )
