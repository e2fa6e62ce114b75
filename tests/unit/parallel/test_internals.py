"""The undocumented parts of DeepSpeed, Megatron and torch that we use exist and do what we assume.

The first test to run after an upgrade of one of them: it fails with the name of the attribute, and the file to change
is brt_dist/parallel/{deepspeed,megatron,torch}_internals.py.
"""

import ast
import importlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from operator import attrgetter
from pathlib import Path

import deepspeed
import megatron.core
import pytest
import torch
import torch.distributed as dist
from torch.nn import functional

import brt_dist
from brt_dist.config.schema import Config
from brt_dist.parallel import deepspeed_internals, megatron_internals, torch_internals
from brt_dist.parallel.device import Device
from brt_dist.parallel.engine import Engine, PipelinedEngine, WholeEngine
from brt_dist.parallel.layout import Layout, single_process
from brt_dist.parallel.micro_batches import StepInput

ROOT = Path(brt_dist.__file__).parent.parent
VERSIONS = {
    "deepspeed": f"DeepSpeed {deepspeed.__version__}",
    "megatron": f"Megatron {megatron.core.__version__}",
    "torch": f"torch {torch.__version__}",
}

# Of modules: where, and what of it.
MODULES = [
    ("deepspeed.ops", "__compatible_ops__"),
    ("deepspeed.utils.logging", "logger"),
    ("deepspeed.comm.comm", "cdb.all_gather_function"),
    ("deepspeed.comm.comm", "cdb.reduce_scatter_function"),
    ("deepspeed.runtime.utils", "clip_grad_norm_"),
    ("deepspeed.runtime.pipe.module", "PipelineModule._partition_layers"),
    ("deepspeed.runtime.pipe.module", "PipelineModule._set_bounds"),
    ("deepspeed.runtime.utils", "combine_grad_norm_groups"),
    (
        "deepspeed.runtime.zero.partition_parameters",
        "InsertPostInitMethodToModuleSubClasses._enable_mem_efficient_linear",  # sets its `linear_bk`
    ),
    ("deepspeed.utils.timer", "NoopTimer"),
    ("deepspeed.ops.op_builder", "AsyncIOBuilder.is_compatible"),
    ("deepspeed.runtime.pipe.topology", "PipeModelDataParallelTopology.get_axis_comm_lists"),
    ("megatron.core.tensor_parallel.layers", "dist_all_gather_func"),
    ("megatron.core.tensor_parallel.layers", "dist_reduce_scatter_func"),
    ("megatron.core.tensor_parallel.mappings", "dist_all_gather_func"),
    ("megatron.core.tensor_parallel.mappings", "dist_reduce_scatter_func"),
    ("torch", "_foreach_norm"),
    ("torch.distributed.distributed_c10d", "_world.pg_map"),
    ("torch.distributed.distributed_c10d", "_set_pg_timeout"),
]

# Kind of engine, ZeRO stage, precision: those that the rules of the config allow.
CASES: dict[str, tuple[type[Engine], int, str]] = {
    "zero0-fp32": (WholeEngine, 0, "fp32"),
    "zero1-fp32": (WholeEngine, 1, "fp32"),
    "zero1-bf16": (WholeEngine, 1, "bf16"),
    "zero2-fp32": (WholeEngine, 2, "fp32"),
    "zero2-bf16": (WholeEngine, 2, "bf16"),
    "zero3-fp32": (WholeEngine, 3, "fp32"),
    "zero3-bf16": (WholeEngine, 3, "bf16"),
    "pipeline-fp32": (PipelinedEngine, 1, "fp32"),
    "pipeline-bf16": (PipelinedEngine, 1, "bf16"),
}
_PARTITIONED = ("zero1-fp32", "zero1-bf16", "zero2-fp32", "zero2-bf16", "pipeline-fp32", "pipeline-bf16")
_SUMS_OF_BF16 = ("zero1-bf16", "pipeline-bf16")
_PIPELINES = ("pipeline-fp32", "pipeline-bf16")
_SHARDED = ("zero3-fp32", "zero3-bf16")
_GRADIENTS_SPLIT = tuple(name for name in _PARTITIONED if name not in _SUMS_OF_BF16)

# Of an engine, when an update is about to be made: what has it, what it is, and in which cases it is there.
ATTRIBUTES = [
    ("engine", "_take_model_step", tuple(CASES)),
    ("engine", "loss", _PIPELINES),
    ("engine", "module._topo.get_coord", _PIPELINES),
    ("engine", "module.global_rank", _PIPELINES),
    ("engine", "module.parts", _PIPELINES),
    ("engine", "pipe_buffers", _PIPELINES),
    ("engine", "total_loss", _PIPELINES),
    ("engine class", "_aggregate_total_loss", _PIPELINES),
    ("engine", "timers", tuple(CASES)),
    ("optimizer class", "scaled_global_norm", _GRADIENTS_SPLIT),
    ("optimizer class", "check_overflow", _GRADIENTS_SPLIT),
    ("optimizer class", "unscale_and_clip_grads", _GRADIENTS_SPLIT),
    ("optimizer", "check_grad_overflow", _GRADIENTS_SPLIT),
    ("optimizer", "averaged_gradients", _GRADIENTS_SPLIT),
    ("optimizer", "overflow", _PARTITIONED),
    ("optimizer class", "_get_norm_groups", _SHARDED),
    ("optimizer", "bf16_groups", _SUMS_OF_BF16),
    ("optimizer", "fp32_groups_flat_partition", _SUMS_OF_BF16),
    ("optimizer", "fp32_groups_gradients_flat", _SUMS_OF_BF16),
    ("engine", "enable_backward_allreduce", (*_SUMS_OF_BF16, "zero0-fp32")),
    ("engine", "pipeline_enable_backward_allreduce", ("pipeline-bf16",)),
    ("engine", "module.get_tied_weights_and_groups", _PIPELINES),
    ("optimizer", "fp32_groups_gradient_flat_partition", _SUMS_OF_BF16),
    ("optimizer", "_lazy_init_hp_params_optimizer_state", _SUMS_OF_BF16),
    ("optimizer", "update_lp_params", _PARTITIONED),
    ("optimizer", "clear_hp_grads", _SUMS_OF_BF16),
    ("parameter", "_hp_mapping.hp_fragment", _PARTITIONED),
    ("parameter", "_hp_mapping.hp_fragment_address.start", _PARTITIONED),
    ("parameter", "_hp_mapping.lp_fragment_address.start", _PARTITIONED),
    ("parameter", "_hp_mapping.lp_fragment_address.numel", _PARTITIONED),
    ("parameter", "_hp_mapping.get_lp_grad_fragment", _GRADIENTS_SPLIT),
    ("parameter", "_index_in_param_group", _GRADIENTS_SPLIT),
    ("optimizer", "cpu_offload", _GRADIENTS_SPLIT),
    ("optimizer class", "_get_fp32_grad_state_partition", _SHARDED),
    ("optimizer", "offload_optimizer", _SHARDED),
    ("parameter", "ds_tensor", _SHARDED),
    ("parameter", "ds_numel", _SHARDED),
    ("parameter", "ds_status.name", _SHARDED),
    ("parameter", "convert_to_zero_parameters", _SHARDED),
    ("optimizer", "invalidate_secondary_tensor", _SHARDED),
    ("optimizer", "grad_position", _SHARDED),
    ("optimizer", "get_param_id", _SHARDED),
    ("optimizer", "fp32_partitioned_groups_flat", _SHARDED),
    ("optimizer", "persistent_parameters", _SHARDED),
]
# names that others use for things of their own
_EVERYDAY = {
    "name", "loss", "module", "parts", "PipelineModule", "logger", "start", "numel", "timers", "offload_optimizer",
}  # fmt: skip


@dataclass
class Seen:
    """An engine that has made one step, and what was there just before its update."""

    engine: Engine
    stage: int
    missing: list[str]
    updates: int


@pytest.fixture(scope="module")
def device() -> Iterator[Device]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with single_process() as found:
        yield found
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=CASES)
def seen(request: pytest.FixtureRequest, device: Device) -> Iterator[Seen]:
    kind, stage, precision = CASES[request.param]
    config = Config.model_validate(
        {
            "model": {"layers": 2, "width": 32, "heads": 2, "head_dim": 16, "mlp_width": 64, "window": 16, "states": 8,
                      "recurrent_layers": (1,), "dropout": 0.0, "vocab_size": 64},
            "data": {"dataset": "unused", "segment": 32, "streams": 2},
            "parallel": {"micro_batch": 1, "zero_stage": stage},
            "run": {"directory": "unused", "steps": 2, "precision": precision},
        }
    )  # fmt: skip
    deepspeed_internals.quiet()
    engine = kind(config, Layout.of(config, 0), device)
    engine.draw()
    found = Seen(engine, stage, [], 0)
    parameters = [parameter.local for parameter in engine.parameters]
    owners = {"engine": engine._deepspeed, "optimizer": engine._deepspeed.optimizer, "parameter": parameters[0]}
    # what we replace in an object is looked for in its class
    owners |= {f"{name} class": type(owners[name]) for name in ("engine", "optimizer")}

    def look() -> None:
        found.updates += 1
        for owner, name, cases in ATTRIBUTES:
            if request.param in cases:
                try:
                    attrgetter(name)(owners[owner])
                except AttributeError:
                    found.missing.append(f"{type(owners[owner]).__name__}.{name}")

    undo = deepspeed_internals.before_update(engine._deepspeed, look)
    train(engine)
    undo()
    yield found
    engine.close()


def train(engine: Engine, is_finite: bool = True) -> None:
    tokens = torch.arange(64).view(2, 32)
    starts = torch.tensor([[True, False]] * 2)
    step = StepInput(1, starts, tokens, tokens.roll(-1, 1), torch.ones_like(tokens, dtype=torch.bool), 64)
    weight = engine.parameters[-1].local
    fault = weight.register_hook(lambda gradient: gradient if is_finite else gradient * math.nan)
    assert engine.train_step(step, 1e-3).is_finite == is_finite
    fault.remove()


@pytest.mark.parametrize(("module", "name"), MODULES)
def test_modules_have_what_we_use(device: Device, module: str, name: str) -> None:
    owner = importlib.import_module(module)
    try:
        attrgetter(name)(owner)
    except AttributeError:
        version = VERSIONS[module.split(".", maxsplit=1)[0]]
        pytest.fail(f"{version}: {module} has no {name}")


def test_engines_have_what_we_use(seen: Seen) -> None:
    assert not seen.missing, f"{VERSIONS['deepspeed']} has no {', '.join(seen.missing)}"


def test_an_update_is_intercepted_once_and_no_more_when_undone(seen: Seen) -> None:
    before = seen.engine.updates
    train(seen.engine)
    assert seen.updates == 1 and seen.engine.updates == before + 1


def test_an_update_that_is_left_out_changes_nothing_and_the_next_one_is_made(seen: Seen) -> None:
    engine = seen.engine
    before = engine.weights(), engine.updates
    train(engine, is_finite=False)
    assert engine.updates == before[1]
    assert all(torch.equal(value, before[0][name]) for name, value in engine.weights().items())
    train(engine)
    assert engine.updates == before[1] + 1
    assert any(not torch.equal(value, before[0][name]) for name, value in engine.weights().items())


def test_a_gradient_is_found_where_it_is_measured_and_taken_from(seen: Seen) -> None:
    """Sequence parallel adds up such gradients, in place: here all are doubled."""
    update, norms = seen.engine._update, []

    def double() -> None:
        norms.append(float(update.norm()))
        found = [update.gradient(parameter) for parameter in seen.engine.parameters]
        for gradient, parameter in zip(found, seen.engine.parameters, strict=True):
            assert gradient is not None and gradient.numel() == parameter.size
            gradient.mul_(2)
        norms.append(float(update.norm()))

    undo = deepspeed_internals.before_update(seen.engine._deepspeed, double)
    train(seen.engine)
    undo()
    assert norms[0] > 0 and norms[1] == pytest.approx(2 * norms[0], rel=1e-6)


def test_master_values_are_those_of_the_parameters(seen: Seen) -> None:
    engine = seen.engine
    flats = [flat for group in engine.optimizer.param_groups for flat in group["params"]]
    for parameter in engine.parameters if seen.stage else ():
        local = parameter.local
        held = deepspeed_internals.master_values(engine._deepspeed.optimizer, seen.stage, local, flats, 0)
        assert held.begin == 0 and held.count == deepspeed_internals.whole_size(local) == parameter.size
        master = held.tensor.detach().view(-1)[held.offset : held.offset + held.count]
        working = deepspeed_internals.shard(local).detach().view(-1)[: held.count]
        assert torch.equal(master.to(working.dtype), working)


def test_what_forward_reads_follows_the_master_values(seen: Seen) -> None:
    if seen.stage:
        zero, parameter = seen.engine._deepspeed.optimizer, seen.engine.parameters[0].local
        flats = [flat for group in seen.engine.optimizer.param_groups for flat in group["params"]]
        held = deepspeed_internals.master_values(zero, seen.stage, parameter, flats, 0)
        held.tensor.detach().view(-1)[held.offset : held.offset + held.count] = 1.5
        locals_ = [parameter.local for parameter in seen.engine.parameters]
        deepspeed_internals.renew_working_weights(zero, seen.stage, locals_, 0)
        assert (deepspeed_internals.shard(parameter).view(-1)[: held.count] == 1.5).all()


def test_parameters_that_are_kept_whole_follow_their_shards(seen: Seen) -> None:
    if seen.stage == 3:
        zero = seen.engine._deepspeed.optimizer
        kept = zero.persistent_parameters[0]
        kept.ds_tensor.data.fill_(2.5)
        deepspeed_internals.gather_persistent_parameters(zero)
        assert (kept == 2.5).all()


def test_the_timeout_of_every_group_is_set(device: Device) -> None:
    groups = [dist.group.WORLD, dist.new_group([0])]
    torch_internals.set_timeout_of_all_groups(77.0)
    for group in groups:
        assert group is not None
        assert group._get_backend(torch.device("cpu")).options._timeout == timedelta(seconds=77)


def test_torch_has_its_own_linear_back(seen: Seen) -> None:
    wrapped = functional.linear
    deepspeed_internals.restore_linear()
    assert functional.linear is torch._C._nn.linear
    functional.linear = wrapped  # the engine lives on


def test_collectives_that_are_timed_are_torchs() -> None:
    found = [*deepspeed_internals.collectives(), *megatron_internals.collectives()]
    assert {getattr(owner, name).__name__ for owner, name in found} == {
        "all_gather_into_tensor",
        "reduce_scatter_tensor",
    }


# -- nobody else uses any of it

_FILES = [path for package in ("brt_dist", "launch", "pipelines") for path in (ROOT / package).rglob("*.py")]
_DOCUMENTED = ("deepspeed", "deepspeed.pipe")  # modules of DeepSpeed that its documentation shows
_NAMEDTUPLE = {"_asdict", "_replace", "_fields"}


def _others() -> Iterator[tuple[str, ast.Module]]:
    for path in _FILES:
        if not path.name.endswith("_internals.py"):
            yield str(path.relative_to(ROOT)), ast.parse(path.read_text())


def test_no_other_file_names_what_is_not_documented() -> None:
    names = {part for _, name, *_ in (*MODULES, *ATTRIBUTES) for part in name.split(".")} - _EVERYDAY
    uses = []
    for path, tree in _others():
        for node in ast.walk(tree):
            found = getattr(node, "attr", None) or getattr(node, "id", None) or getattr(node, "value", None)
            if isinstance(found, str) and found in names:
                uses.append(f"{path}:{node.lineno} {found}")  # type: ignore[attr-defined]
    assert not uses


def test_no_other_file_imports_undocumented_modules() -> None:
    uses = []
    for path, tree in _others():
        for node in ast.walk(tree):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for module in modules:
                is_deepspeed = module.split(".")[0] == "deepspeed" and module not in _DOCUMENTED
                if is_deepspeed or "distributed_c10d" in module:
                    uses.append(f"{path}:{node.lineno} {module}")  # type: ignore[attr-defined]
    assert not uses


def test_no_other_file_of_the_library_reaches_into_an_object() -> None:
    """`thing._name` only of oneself, or of something that the same file defines."""
    uses = []
    for path, tree in _others():
        nodes = [node for node in ast.walk(tree) if path.startswith("brt_dist/")]
        own = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)} | {"__init__"}
        for node in nodes:
            if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.endswith("__"):
                of_oneself = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
                if not of_oneself and node.attr not in own | _NAMEDTUPLE:
                    uses.append(f"{path}:{node.lineno} {ast.unparse(node)}")
    assert not uses


def test_deepspeed_reports_no_memory(capsys: pytest.CaptureFixture[str]) -> None:
    """Its optimizer for bf16 asks for reports whatever the log level, under a name of its own."""
    from deepspeed.runtime import bf16_optimizer

    deepspeed_internals.quiet()
    bf16_optimizer.see_memory_usage("before", force=True)
    deepspeed.runtime.utils.see_memory_usage("after", force=True)
    assert capsys.readouterr().out == ""
