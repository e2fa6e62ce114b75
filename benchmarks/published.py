"""Published throughput of Megatron-LM against the simulator, for plain transformers: `python -m benchmarks.published`.

Table 1 of arXiv 2104.04473: GPT models of 1.7 billion to 1 trillion parameters on 32 to 3,072 A100s, sequences of 2,048
tokens, a vocabulary of 51,200, all activations recomputed, tensor parallelism within a node.  Their pipeline is
interleaved and sends each tensor parallel rank's part of the hidden states; the simulator knows plain 1F1B.  The paper
does not give the micro-batch of each row; it is taken as 1.

README of NVIDIA/Megatron-LM (2024): a GPT-3 of 175 billion parameters on 96 to 4,608 H100s, always 1,152 sequences.  It
does not give the layouts; tensor 4, pipeline 8 is taken, with the vocabulary and the sequences of its other models.

Two cost models give the seconds of each stage: a roofline of Megatron's software, as far as the papers describe it; and
that of `brt plan`, for a model of ours that is as close to a plain transformer as it gets: windows as long as the
sequence, so that a token sees twice as many keys, and with kernels like Megatron's (`KERNELS`) in place of our own.
One number is fitted for each cost model and device, on one row: the share of the peak that matrix products reach.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from benchmarks.roofline import Axes, StageWork, stage_seconds
from brt_dist.config.schema import Config
from brt_dist.planning.devices import DeviceSpec, device_spec
from brt_dist.planning.scaling import stages_of
from brt_dist.planning.simulator.seconds import StageSeconds
from brt_dist.planning.simulator.step import simulate_step


@dataclass(frozen=True)
class Gpt:
    """A plain transformer: every token attends to all before it."""

    layers: int
    width: int
    heads: int
    sequence: int = 2048
    vocabulary: int = 51200

    @property
    def parameters(self) -> float:
        """Of the whole model (arXiv 2104.04473, eq. 2)."""
        layers, width = self.layers, self.width
        return (
            12 * layers * width**2 * (1 + 13 / (12 * width) + (self.vocabulary + self.sequence) / (12 * layers * width))
        )

    def flops(self, sequences: int, passes: int) -> float:
        """Of a step; `passes` 4: with a second forward, as in eq. 3 of the paper; 3: what the model asks for."""
        layers, width = self.layers, self.width
        forward = 24 * sequences * self.sequence * layers * width**2 * (1 + self.sequence / (6 * width))
        logits = 2 * sequences * self.sequence * width * self.vocabulary
        return passes * forward + 3 * logits


@dataclass(frozen=True)
class Row:
    """A published measurement.

    Attributes:
        batch: sequences of a step.
        published: share of the peak.
    """

    model: Gpt
    axes: Axes
    batch: int
    published: float


def _weak(heads: int, width: int, layers: int, axes: tuple[int, int, int], batch: int, teraflops: float) -> Row:
    tensor, pipeline, gpus = axes
    return Row(Gpt(layers, width, heads), Axes(tensor, gpus // tensor // pipeline, pipeline), batch, teraflops / 312)


# heads, width, layers, (tensor, pipeline, GPUs), batch, TFLOP/s of a GPU
WEAK = [
    _weak(24, 2304, 24, (1, 1, 32), 512, 137),
    _weak(32, 3072, 30, (2, 1, 64), 512, 138),
    _weak(32, 4096, 36, (4, 1, 128), 512, 142),
    _weak(48, 6144, 40, (8, 1, 256), 1024, 135),
    _weak(64, 8192, 48, (8, 2, 512), 1536, 138),
    _weak(80, 10240, 60, (8, 4, 1024), 1792, 140),
    _weak(96, 12288, 80, (8, 8, 1536), 2304, 148),
    _weak(128, 16384, 96, (8, 16, 1920), 2160, 155),
    _weak(128, 20480, 105, (8, 35, 2520), 2520, 163),
    _weak(160, 25600, 128, (8, 64, 3072), 3072, 163),
]


def work(row: Row, stage: int, modern: bool) -> StageWork:
    """Work of a rank of a stage, for one sequence.

    Args:
        modern: attention in one kernel, ZeRO-1 whose reduction runs beside backward, sequence parallelism, and only
            attention recomputed; else as in 2021.
    """
    model, axes = row.model, row.axes
    tokens = model.sequence
    per_token = 24 * model.width**2 * (1 + model.sequence / (6 * model.width))
    layers = model.layers / axes.pipeline
    hidden = 2.0 * tokens * model.width
    forward = tokens * layers * per_token / axes.tensor
    attention = tokens * layers * 4 * model.width * model.sequence / axes.tensor
    logits = tokens * 2 * model.width * model.vocabulary / axes.tensor if stage == axes.pipeline - 1 else 0.0
    kept = (
        34 / axes.tensor
        if modern
        else 10 + 24 / axes.tensor + 5 * model.heads * model.sequence / model.width / axes.tensor
    )
    traffic = layers * kept * hidden
    ends = model.vocabulary * model.width / axes.tensor if stage in (0, axes.pipeline - 1) else 0.0
    count = 12 * layers * model.width**2 / axes.tensor + ends
    others = (axes.data - 1) / axes.data
    sums = 2 * layers * hidden if axes.tensor > 1 else 0.0
    reduced = (4.0 if modern else 2 * 2.0) * count * others
    return StageWork(
        flops=forward + logits,
        recomputed=attention if modern else forward,
        traffic=traffic,
        traffic_again=0.0 if modern else traffic,
        summed=sums,
        summed_back=sums * (1.5 if modern else 2.0),
        sent=hidden / axes.tensor,
        reduced=reduced,
        late=min(reduced, 4.0 * 50e6) if modern else reduced,
        gathered=2 * count * others if modern else 0.0,
        updated=30 * count / (axes.data if modern else 1),
        tied=4 * ends if axes.pipeline > 1 else 0.0,
    )


STRONG = [
    Row(Gpt(96, 12288, 96, vocabulary=131072, sequence=4096), Axes(4, gpus // 32, 8), 1152, share)
    for gpus, share in ((96, 0.47), (4608, 0.42))
]


KERNELS = {"attention_efficiency": 0.3, "activation_passes": 5.0, "launch_seconds": 5e-6}
"""In place of what was measured of ours: attention as in FlashAttention-2 (arXiv 2307.08691: about 60 % of the peak, of
which half is for keys that are not there), fused passes over activations, and a host that is not the limit"""

Stages: TypeAlias = Callable[[Row, DeviceSpec, bool], list[StageSeconds]]


def by_roofline(row: Row, device: DeviceSpec, modern: bool) -> list[StageSeconds]:
    """Stages of Megatron's software."""
    axes = row.axes
    return [stage_seconds(work(row, stage, modern), axes, device) for stage in range(axes.pipeline)]


def by_plan(row: Row, device: DeviceSpec, modern: bool) -> list[StageSeconds]:
    """Stages of our engine, as `brt plan` has them."""
    model, axes = row.model, row.axes
    config = Config.model_validate(
        {
            "model": {
                "layers": model.layers,
                "width": model.width,
                "heads": model.heads,
                "head_dim": model.width // model.heads,
                "vocab_size": model.vocabulary,
                "window": model.sequence,
                "dropout": 0.0,
                "mixers": {"window": {}},
                "ffns": {"relu": {"width": 4 * model.width}},
            },
            "data": {"dataset": "none", "segment": model.sequence, "streams": row.batch},
            "parallel": {
                "tensor": axes.tensor,
                "pipeline": axes.pipeline,
                "data": axes.data,
                "micro_batch": 1,
                "sequence_parallel": axes.tensor > 1,
                "recompute": "attention" if modern else "layer",
            },
            "run": {"directory": "none", "steps": 1, "precision": "bf16"},
        }
    )
    return stages_of(config, device.model_copy(update=KERNELS))


@dataclass(frozen=True)
class Predicted:
    """What the simulator says of a row, as shares of the peak.

    Attributes:
        plain: with 1F1B, as DeepSpeed's engine has it.
        interleaved: with as many ranges of layers on a stage as it has layers, and so that part of the bubble.
        bubble: share of the step that ranks wait, with 1F1B.
    """

    plain: float
    interleaved: float
    bubble: float


def predict(row: Row, stages: Sequence[StageSeconds], peak: float, modern: bool) -> Predicted:
    """Simulate a step of a row."""
    step = simulate_step(stages, row.batch // row.axes.data)
    ideal = row.model.flops(row.batch, 3 if modern else 4) / row.axes.gpus / peak
    return Predicted(ideal / step.seconds, ideal / (step.seconds - _filled(row, stages)), step.bubble)


def _filled(row: Row, stages: Sequence[StageSeconds]) -> float:
    """Seconds of the bubble that interleaving fills: all but the v-th part, v layers of a stage being v ranges."""
    mean = sum(stage.forward + stage.backward for stage in stages) / len(stages)
    ranges = row.model.layers / row.axes.pipeline
    return (row.axes.pipeline - 1) * mean * (1 - 1 / ranges)


@dataclass(frozen=True)
class Compared:
    """A row beside its predictions; efficiencies were fitted on the row of this device for which `is_fitted`."""

    device: str
    row: Row
    efficiency: float
    roofline: Predicted
    efficiency_of_plan: float
    plan: Predicted
    is_fitted: bool


def compare(device: str, rows: Sequence[Row], fit: int, modern: bool) -> list[Compared]:
    """Fit the efficiencies on row number `fit`, and predict all."""
    found = []
    for stages in (by_roofline, by_plan):
        share = _fitted(rows[fit], device, stages, modern)
        found.append((share, [_predicted(row, device, share, stages, modern) for row in rows]))
    (share, roofline), (of_plan, plan) = found
    return [
        Compared(device, row, share, roofline[number], of_plan, plan[number], number == fit)
        for number, row in enumerate(rows)
    ]


def _predicted(row: Row, device: str, efficiency: float, stages: Stages, modern: bool) -> Predicted:
    spec = device_spec(device).model_copy(update={"matmul_efficiency": efficiency})
    return predict(row, stages(row, spec, modern), spec.peak_flops.bf16, modern)


def _fitted(row: Row, device: str, stages: Stages, modern: bool) -> float:
    """The efficiency with which a row is met, with interleaving where it has a pipeline.

    The time of a step is linear in the time of its products, unless they begin or cease to hide something else.
    """

    def seconds(inverse: float) -> float:
        return 1 / _predicted(row, device, 1 / inverse, stages, modern).interleaved

    before, inverse = 2.0, 1.5
    time_before = seconds(before)
    for _ in range(3):
        time = seconds(inverse)
        slope = (time - time_before) / (inverse - before)
        before, time_before = inverse, time
        inverse += (1 / row.published - time) / slope
        if abs(inverse - before) < 1e-9:
            break
    return 1 / inverse


def all_compared() -> list[Compared]:
    """Both publications.  Fitted are the first rows in which a whole node works on each layer."""
    return [*compare("a100", WEAK, 3, modern=False), *compare("h100", STRONG, 0, modern=True)]


def table(compared: Sequence[Compared]) -> list[str]:
    """In Markdown."""
    head = ("GPUs", "parameters", "tensor, pipeline, data", "published", "roofline, 1F1B", "interleaved",
            "plan, 1F1B", "interleaved", "1F1B waits")  # fmt: skip
    lines = [f"| {' | '.join(head)} |", "| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |"]
    for one in compared:
        axes, shares = one.row.axes, (one.row.published, one.roofline.plain, one.roofline.interleaved)
        shares += (one.plan.plain, one.plan.interleaved, one.roofline.bubble)
        cells = [
            f"{axes.gpus:,} {one.device.upper()}{', fitted' if one.is_fitted else ''}",
            f"{one.row.model.parameters / 1e9:,.1f} B",
            f"{axes.tensor}, {axes.pipeline}, {axes.data}",
            *(f"{share:.1%}" for share in shares),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    compared = all_compared()
    print("\n".join(table(compared)))
    for one in compared:
        if one.is_fitted:
            print(f"{one.device}: {one.efficiency:.3f} of the peak, by the plan {one.efficiency_of_plan:.3f}")
