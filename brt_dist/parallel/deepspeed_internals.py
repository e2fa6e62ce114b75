"""All undocumented parts of DeepSpeed that we use.  No other file may use any.

An upgrade of DeepSpeed may rename any of it.  tests/unit/parallel/test_internals.py builds real engines and names each
attribute, so it is the test to run first after an upgrade, and this is the file to change.

DeepSpeed is imported in the functions: it picks its accelerator at import, so `device.choose` must come before.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.nn import Module

UPDATE = "_take_model_step"  # the method of an engine that updates


@dataclass(frozen=True)
class MasterValues:
    """What a rank holds of the float32 master values of one parameter.

    Attributes:
        tensor: what the optimizer steps, a flat partition of several parameters.
        offset: where in `tensor` the parameter's elements begin.
        begin: which element of this rank's parameter is the first of them.
        count: how many there are, with padding; may be 0.
    """

    tensor: Tensor
    offset: int
    begin: int
    count: int


def import_deepspeed() -> None:
    """Import DeepSpeed, whose autotuner (not used here) imports MLflow if it can: seconds of each rank's start."""
    absent = "mlflow" not in sys.modules
    if absent:
        sys.modules["mlflow"] = None  # type: ignore[assignment]  # an import of it fails, as if not installed
    try:
        import deepspeed  # noqa: F401
    finally:
        if absent:
            del sys.modules["mlflow"]


def quiet() -> None:
    """Keep DeepSpeed from printing hundreds of lines on every rank when it starts.

    Some lines report memory (`MA 0.1 GB Max_MA ...`), whatever its logger's level, after a garbage collection that
    takes a second of each start; its modules hold the function that does so under their own names.
    """
    import deepspeed
    import deepspeed.runtime.bf16_optimizer

    deepspeed.utils.logging.logger.setLevel("ERROR")
    for name, module in list(sys.modules.items()):
        if name.startswith("deepspeed.") and "see_memory_usage" in vars(module):
            vars(module)["see_memory_usage"] = _say_nothing


def _say_nothing(message: str, force: bool = False) -> None:
    """Replaces `see_memory_usage`: events say what a rank holds."""


def skip_compiled_kernels() -> None:
    """Tell DeepSpeed that no compiled kernel is wanted (on a CPU).

    It would compile a shared-memory all-reduce that only inference uses.  That takes a minute and needs a compiler on
    every node, and a killed build leaves a lock on which all later starts wait forever.
    """
    import_deepspeed()
    import deepspeed.ops

    vars(deepspeed.ops)["__compatible_ops__"] = {}


def pipeline_topology(pipeline: int, tensor: int, data: int) -> Any:
    """DeepSpeed's description of a layout, as `PipelineModule` takes it."""
    from deepspeed.runtime.pipe.topology import PipeModelDataParallelTopology

    return PipeModelDataParallelTopology(num_pp=pipeline, num_mp=tensor, num_dp=data)


def pipeline_instructions(micro_batches: int, stages: int, stage: int) -> list[str]:
    """Names of the instructions that a stage of a pipeline executes in a training step, in order."""
    from deepspeed.runtime.pipe.schedule import TrainSchedule

    schedule = TrainSchedule(micro_batches=micro_batches, stages=stages, stage_id=stage)
    return [instruction.name for step in schedule.steps() for instruction in step]


def cut_layers(module: Any, bounds: Sequence[int]) -> None:
    """Have a `PipelineModule`, before its `__init__`, cut its list of layers there.

    Args:
        bounds: where each stage begins in the list, and the length of the list.
    """

    def cut(method: str = "") -> None:
        module.parts = list(bounds)
        stage = module._topo.get_coord(module.global_rank).pipe
        module._set_bounds(start=bounds[stage], stop=bounds[stage + 1])

    vars(module)["_partition_layers"] = cut


def groups_on_axis(topology: Any, axis: str) -> list[list[int]]:
    """The ranks of each group on an axis ("pipe", "data" or "model"); none on an axis of size one."""
    found: list[list[int]] = topology.get_axis_comm_lists(axis)
    return found


def collectives() -> Iterator[tuple[Any, str]]:
    """Owner and name of DeepSpeed's own references to torch's collectives."""
    from deepspeed.comm import comm

    return ((comm.cdb, name) for name in ("all_gather_function", "reduce_scatter_function"))


def before_update(engine: Any, action: Callable[[], None]) -> Callable[[], None]:
    """Call `action` before each optimizer update of an engine, once gradients are reduced.

    Returns:
        A function that undoes it.
    """
    update = engine._take_model_step

    def guarded(*arguments: Any, **named: Any) -> Any:
        action()
        return update(*arguments, **named)

    def undo() -> None:
        engine._take_model_step = update

    engine._take_model_step = guarded
    return undo


def silence_timers(engine: Any) -> None:
    """Keep an engine from timing itself: its pipeline would keep two events of each step forever."""
    from deepspeed.utils.timer import NoopTimer

    engine.timers = NoopTimer()


def loss_of_batch(engine: Any) -> Tensor:
    """On the last stage of a pipeline, before the update: the mean loss over the micro-batches of this rank."""
    total: Tensor = engine.total_loss
    return total / engine.gradient_accumulation_steps()


def skip_loss(engine: Any) -> None:
    """Keep a pipeline from sending the loss of a batch to all ranks; they have agreed on it before the update."""
    engine._aggregate_total_loss = lambda: None


def takes_apart(settings: Any, dtype: Any, groups: Any) -> Callable[[Module], None]:
    """A function for ZeRO-3 that partitions a module as soon as it is built: no rank ever holds the whole model.

    Args:
        settings: DeepSpeed's config.
        dtype: what the weights become.
        groups: the model parallel groups (an `mpu`).
    """
    from deepspeed import zero

    first: list[Any] = []  # the first weight: all others are handled the same way

    def take_apart(module: Module) -> None:
        weights = list(module.to(dtype).parameters())
        if first:
            first[0].convert_to_zero_parameters(param_list=weights)
        else:
            group = groups.get_data_parallel_group()
            zero.Init(module=module, data_parallel_group=group, config_dict_or_path=settings, dtype=dtype, mpu=groups)
        first.extend(weights[:1])

    return take_apart


def shard(parameter: Tensor) -> Tensor:
    """The values of a parameter on this rank that the forward pass uses: all, or under ZeRO-3 a flat shard."""
    held: Tensor = getattr(parameter, "ds_tensor", parameter)
    return held


def whole_size(parameter: Tensor) -> int:
    """Number of elements, also of a parameter that ZeRO-3 has partitioned."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def master_values(zero: Any, stage: int, parameter: Tensor, flats: Sequence[Tensor], data_rank: int) -> MasterValues:
    """Where ZeRO keeps the master values of a parameter on this rank.

    Args:
        zero: DeepSpeed's optimizer.
        stage: of ZeRO, 1 to 3.
        flats: what the wrapped optimizer steps.
    """
    if stage == 3:
        group, offset, count = zero.grad_position[zero.get_param_id(parameter)]
        return MasterValues(zero.fp32_partitioned_groups_flat[group], offset, data_rank * count, count)
    mapping = parameter._hp_mapping  # type: ignore[attr-defined]
    if mapping is None:
        return MasterValues(flats[0], 0, 0, 0)
    here, there = mapping.lp_fragment_address, mapping.hp_fragment_address
    return MasterValues(_holder(flats, mapping.hp_fragment), there.start, here.start, here.numel)


def renew_working_weights(zero: Any, stage: int, parameters: Iterable[Tensor], data_rank: int) -> None:
    """Set the forward pass's values from the master values, which were set by hand.  Collective.

    Args:
        zero: DeepSpeed's optimizer.
        stage: of ZeRO, 1 to 3.
        parameters: all of this rank.
    """
    if stage < 3:
        zero.update_lp_params()
        return
    for parameter in parameters:
        held = master_values(zero, stage, parameter, (), data_rank)
        shard(parameter).data.view(-1)[: held.count] = held.tensor.data[held.offset : held.offset + held.count]
    zero.invalidate_secondary_tensor()
    gather_persistent_parameters(zero)


def gather_persistent_parameters(zero: Any) -> None:
    """Refresh the small parameters that ZeRO-3 keeps whole on every rank, from their shards.  Collective.

    Before the first forward there are none to renew; if they were gathered then, DeepSpeed would lose track of them.
    """
    whole = [parameter for parameter in zero.persistent_parameters if parameter.ds_status.name == "AVAILABLE"]
    if whole:
        whole[0].all_gather(whole)


def release_graph(engine: Any) -> None:
    """Drop the last graph of a pipeline engine.

    It would keep the whole engine alive, as the garbage collector does not follow autograd's references.
    """
    engine.loss = None
    engine.pipe_buffers = {}


def restore_linear() -> None:
    """Undo ZeRO-3's change to the process's `torch.nn.functional.linear`, for good."""
    from deepspeed.runtime.zero.partition_parameters import InsertPostInitMethodToModuleSubClasses as Patched
    from torch.nn import functional

    functional.linear = getattr(Patched, "linear_bk", functional.linear)


def _holder(flats: Sequence[Tensor], fragment: Tensor) -> Tensor:
    """The flat tensor that `fragment` is a view of."""
    for flat in flats:
        begin = flat.data_ptr()
        if begin <= fragment.data_ptr() < begin + flat.numel() * flat.element_size():
            return flat
    raise RuntimeError("DeepSpeed's master values are in no parameter group of the optimizer")
