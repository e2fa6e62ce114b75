"""Nothing in training depends on the order in which a device happens to run its threads.

"A resumed run is bitwise the uninterrupted one" holds on a GPU only if no operation adds with atomics.  The operations
are those of torch.use_deterministic_algorithms: what it makes deterministic at a price, and what it refuses.
"""

import ast
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import brt_dist
from brt_dist.config.schema import ModelConfig
from brt_dist.kinds import FFNS, MIXERS, OPTIMIZERS
from brt_dist.model.dropout import Dropout
from brt_dist.model.model import BlockRecurrentModel, loss_sum
from brt_dist.model.parameters import logical_parameters
from brt_dist.optim.base import Sharding
from brt_dist.parallel.layout import MegatronGroups, single_process

ROOT = Path(brt_dist.__file__).parent.parent

# Functions and methods, as they are called in Python.  Those of which only the backward is in the list, too, except
# gather, as others name methods so; its backward is among what is dispatched.
IN_SOURCE = {
    "index_add", "index_add_", "index_copy", "index_copy_", "index_put", "index_put_", "index_select", "put_",
    "scatter", "scatter_", "scatter_add", "scatter_add_", "scatter_reduce", "scatter_reduce_",
    "repeat_interleave", "bincount", "histc", "kthvalue", "median", "cumsum", "cumsum_", "interpolate", "grid_sample",
    "ctc_loss", "nll_loss", "embedding_bag", "max_unpool1d", "max_unpool2d", "max_unpool3d", "avg_pool3d",
    "adaptive_avg_pool2d", "adaptive_avg_pool3d", "max_pool3d", "adaptive_max_pool2d", "fractional_max_pool2d",
    "conv_transpose1d", "conv_transpose2d", "conv_transpose3d",
}  # fmt: skip
# The same in what autograd and our code dispatch to the device.
DISPATCHED = {name.rstrip("_") for name in IN_SOURCE} - {"index_select", "index_put", "repeat_interleave"}
OTHER_MODULES = {"np", "numpy", "statistics", "dist", "pc"}  # not torch

ALLOWED = {
    ("brt_dist/optim/matrix_range.py", "index_add_"): "on a CPU, where it adds row after row",
    ("brt_dist/optim/matrix_range.py", "repeat_interleave"): "no gradient is taken",
    ("brt_dist/model/experts.py", "bincount"): "counts, which are integers",
    ("brt_dist/model/experts.py", "index_copy"): "to each place once",
    ("brt_dist/model/filters.py", "cumsum"): "counts, which are integers",
    ("brt_dist/export/huggingface/modeling_brt.py", "index_copy"): "it only generates",
    ("brt_dist/export/huggingface/modeling_brt.py", "index_put"): "it only generates",
    ("brt_dist/model/cross_entropy.py", "scatter_add_"): "one number, to one place of each row",
    ("brt_dist/model/sparse_units.py", "scatter_"): "one number, to one place of each row",
    ("brt_dist/data/in_memory.py", "cumsum"): "of NumPy, on the host",
    ("brt_dist/generation/sample.py", "cumsum"): "a sample is no part of training",
    ("brt_dist/generation/choose.py", "cumsum"): "likewise",
    ("brt_dist/model/fla_kernels.py", "index_copy"): "each index once",
    ("brt_dist/model/fla_kernels.py", "index_select"): "each index once, so its backward adds once to each element",
}


def test_the_source_uses_only_operations_with_one_result() -> None:
    found = {(path, name) for path, name in _uses()}
    assert found - ALLOWED.keys() == set(), "not deterministic on a GPU; find another way, or say here why not"
    assert ALLOWED.keys() - found == set(), "no longer used"


def _uses() -> Iterator[tuple[str, str]]:
    for path in (ROOT / "brt_dist").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Attribute) or node.attr not in IN_SOURCE:
                continue
            if not (isinstance(node.value, ast.Name) and node.value.id in OTHER_MODULES):
                yield path.relative_to(ROOT).as_posix(), node.attr


# Of kinds that choose experts: how many tokens chose each, and what goes to each place once, as the gradient of topk.
EXPERTS = {"bincount", "index_copy", "scatter"}


class Dispatched(TorchDispatchMode):
    """Names of all operations of a block."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._overloadname != "value":  # of scatter: a number, not a tensor
            self.names.add(func._schema.name.removeprefix("aten::").rstrip("_"))
        return func(*args, **(kwargs or {}))


DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
FFN_SETTINGS: dict[str, dict[str, Any]] = {"relu": {"width": 64}}
MIXER_SETTINGS: dict[str, dict[str, Any]] = {"recurrent": {"states": 8, "layers": None}, "delta": {"gate": True}}
# every kind meets the first of the other tables
KINDS = {
    *((mixer, next(iter(FFNS)), next(iter(OPTIMIZERS))) for mixer in MIXERS),
    *((next(iter(MIXERS)), ffn, next(iter(OPTIMIZERS))) for ffn in FFNS),
    *((next(iter(MIXERS)), next(iter(FFNS)), optimizer) for optimizer in OPTIMIZERS),
}


@pytest.fixture
def strict(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Torch refuses what is not deterministic."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("strict")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("mixer", "ffn", "optimizer"), sorted(KINDS))
def test_a_step_of_every_kind_has_one_result(mixer: str, ffn: str, optimizer: str, device: str) -> None:
    first, names = step(mixer, ffn, optimizer, device)
    allowed = EXPERTS if mixer == "switchhead" or ffn == "sigma_moe" else set()
    allowed = allowed | ({"index_add"} if optimizer == "adafactor" and device == "cpu" else set())
    assert names & DISPATCHED <= allowed
    again, _ = step(mixer, ffn, optimizer, device)
    assert all(torch.equal(first[name], again[name]) for name in first)


def step(mixer: str, ffn: str, optimizer: str, device: str) -> tuple[dict[str, torch.Tensor], set[str]]:
    """Weights after a forward, backward and update, and what was dispatched for them."""
    config = ModelConfig.model_validate(
        {
            "layers": 2, "width": 128, "heads": 2, "head_dim": 64, "vocab_size": 150, "window": 16, "dropout": 0.1,
            "mixers": {mixer: MIXER_SETTINGS.get(mixer, {})}, "ffns": {ffn: FFN_SETTINGS.get(ffn, {})},
        }
    )  # fmt: skip
    with single_process(device) as place, place.torch:
        model = BlockRecurrentModel(config, 0)
        parameters = list(logical_parameters(model))
        group = MegatronGroups.get_tensor_model_parallel_group()
        sharding = Sharding(tensor=1, tensor_rank=0, is_flat=False, shards=1, shard=0, group=group)
        rule = OPTIMIZERS[optimizer]().build(parameters, sharding)
        tokens = torch.arange(2 * 32).view(2, 32) % 7  # each many times
        starts = torch.tensor([[True, False], [False, True]])
        with Dispatched() as dispatched:
            logits, _ = model(tokens, model.blank_memory(2), starts, Dropout(0.1, 0, 0, (0, 1)))
            loss = loss_sum(logits, tokens, torch.ones_like(tokens, dtype=torch.bool))
            loss.backward()
            rule.step()
        assert math.isfinite(float(loss))
        return {p.name: p.local.detach().clone() for p in parameters}, dispatched.names
