"""Bytes that a rank of a layout holds between steps, without activations, libraries and communication buffers.

As in DeepSpeed: weights in the precision of the run; with ZeRO or bf16, float32 master weights, which ZeRO splits
over the data parallel ranks like the optimizer state; under ZeRO-3 the weights are split too.
"""

from dataclasses import asdict, dataclass

from brt_dist.config.halves import Matrix
from brt_dist.config.schema import Config
from brt_dist.config.stages import stage_layers
from brt_dist.events import Plan, RankSizes
from brt_dist.model.shapes import padded_vocab
from brt_dist.optim.base import LocalMatrix
from brt_dist.planning.flops import TRAINING, forward_flops
from brt_dist.planning.parameters import stage_parameters


@dataclass(frozen=True)
class Held:
    """What one rank holds.

    Attributes:
        parameters: how many parameters.
        weights: bytes of the weights.
        optimizer: bytes of master weights and optimizer state.
        carried: bytes of the memory of its streams.
    """

    parameters: int
    weights: int
    optimizer: int
    carried: int

    @property
    def bytes(self) -> int:
        return self.weights + self.optimizer + self.carried

    def to_json(self) -> dict[str, int]:
        return asdict(self)


def plan_of(config: Config) -> Plan:
    """The plan of a run; `model.vocab_size` must be set.  Sizes are those of the rank that holds the most."""
    parallel, data, model = config.parallel, config.data, config.model
    whole = config.model_copy(update={"parallel": type(parallel)()})
    padding = (padded_vocab(model.vocab_size or 0, 1) - (model.vocab_size or 0)) * model.width
    stages = [held_by(config, stage) for stage in range(parallel.pipeline)]
    return Plan(
        parameters=sum(matrix.size for matrix in stage_parameters(whole, 0)) - padding,
        ranks=parallel.world_size,
        fullest_rank=RankSizes(**max(stages, key=lambda held: held.bytes).to_json()),
        tokens_per_step=data.streams * data.segment,
        flops_per_step=TRAINING * forward_flops(model) * data.streams * data.segment,
    )


def held_by(config: Config, stage: int) -> Held:
    """What each rank of a pipeline stage holds."""
    parallel = config.parallel
    tensor, shards = parallel.tensor, parallel.data if parallel.zero_stage else 1
    local = [_part(matrix, tensor) for matrix in stage_parameters(config, stage)]
    count = sum(part.numel for part in local)
    itemsize = 2 if config.run.precision == "bf16" else 4
    weights = count * itemsize // (shards if parallel.zero_stage == 3 else 1)
    has_masters = parallel.zero_stage > 0 or itemsize == 2
    masters = 4 * count // shards if has_masters else 0
    state = config.optimizer.state_bytes(local, shards)
    return Held(count, weights, masters + state, _carried(config, stage, itemsize))


def _part(matrix: Matrix, tensor: int) -> LocalMatrix:
    rows = matrix.rows // tensor if matrix.split else matrix.rows
    shape = (rows,) if matrix.columns == 1 else (rows, matrix.columns)
    return LocalMatrix(shape, 0 if matrix.split else None, tensor, matrix.rows, (matrix.matrices, 1))


def _carried(config: Config, stage: int, itemsize: int) -> int:
    model, parallel = config.model, config.parallel
    layers = stage_layers(config)[stage]
    fields = [field for layer in layers for field in model.mixer_of(layer).memory(model)]
    of_stream = sum(field.local_bytes(parallel.tensor, parallel.sequence_parallel, itemsize) for field in fields)
    return config.micro_batches * parallel.micro_batch * of_stream
