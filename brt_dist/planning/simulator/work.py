"""What the ranks of a config compute and move, for the roofline."""

from brt_dist.config.schema import Config
from brt_dist.config.stages import stage_layers
from brt_dist.config.zero import SCATTERED_BUCKET
from brt_dist.config.zero_rules import scatters_sums
from brt_dist.planning.parameters import stage_parameters
from brt_dist.planning.simulator.roofline import Axes, StageWork

_UPDATE = 30  # bytes of AdamW for each weight: read 16 (gradient, master, moments), write 12, and 2 of bf16
_MASTER = 4
# bytes of activations for each channel of a token in a layer, in 16 bit (arXiv 2205.05198, eq. 2 without attention)
_SPLIT, _WHOLE = 24, 10


def axes_of(config: Config) -> Axes:
    """Sizes of the layout of a config."""
    parallel = config.parallel
    return Axes(parallel.tensor, parallel.data, parallel.pipeline)


def stage_work(config: Config, stage: int) -> StageWork:
    """The work of each rank of a pipeline stage; `model.vocab_size` must be set."""
    model, parallel = config.model, config.parallel
    tensor, data = parallel.tensor, parallel.data
    itemsize = 2 if config.run.precision == "bf16" else 4
    tokens = parallel.micro_batch * config.data.segment
    layers = [layer for layer in stage_layers(config)[stage] for _ in range(model.repeat)]

    mixers = tokens / tensor * sum(model.mixer_of(layer).flops(model, executed=True) for layer in layers)
    ffns = tokens / tensor * sum(model.ffn_of(layer).flops(model, True) for layer in layers)
    logits = tokens / tensor * 2 * model.width * (model.vocab_size or 0) if stage == parallel.pipeline - 1 else 0.0
    again = {"none": 0.0, "attention": mixers, "layer": mixers + ffns}[parallel.recompute]

    splits_sequence = parallel.sequence_parallel and tensor > 1
    hidden = tokens * model.width * itemsize
    kept = (_SPLIT + _WHOLE) / tensor if splits_sequence else _SPLIT / tensor + _WHOLE
    traffic = 2 * len(layers) * kept * hidden / 2  # each value is written, and read
    repeated = {"none": 0.0, "attention": 0.5, "layer": 1.0}[parallel.recompute]
    sums = 2 * len(layers) * hidden if tensor > 1 else 0.0  # one in each half of a layer
    # with sequence parallelism backward gathers the inputs of both halves once more
    sums_back = sums * (1 + (0.5 if splits_sequence else 0.0) + repeated)

    count = sum(matrix.size // (tensor if matrix.split else 1) for matrix in stage_parameters(config, stage))
    others = (data - 1) / data
    gradient = _MASTER if parallel.zero.reduce_dtype == "fp32" else 2
    rounds = 1 if parallel.zero_stage and parallel.zero.reduce_scatter else 2
    reduced = rounds * gradient * count * others
    hides = parallel.zero.overlap is not False and (scatters_sums(config) or parallel.zero_stage == 3)
    bucket = parallel.zero.reduce_bucket or SCATTERED_BUCKET
    return StageWork(
        flops=mixers + ffns + logits,
        recomputed=again,
        traffic=traffic,
        traffic_again=traffic * repeated,
        summed=sums,
        summed_back=sums_back,
        fetched=itemsize * count * others if parallel.zero_stage == 3 else 0.0,
        sent=hidden / (tensor if splits_sequence else 1),
        reduced=reduced,
        late=min(reduced, rounds * gradient * bucket * others) if hides else reduced,
        gathered=itemsize * count * others if parallel.zero_stage in (1, 2) else 0.0,
        updated=_UPDATE * count / (data if parallel.zero_stage else 1),
        tied=gradient * (model.vocab_size or 0) * model.width / tensor if parallel.pipeline > 1 else 0.0,
    )
