"""Published throughput of Megatron-LM against the simulator, for plain transformers: `python -m benchmarks.published`.

Table 1 of arXiv 2104.04473: GPT models of 1.7 billion to 1 trillion parameters on 32 to 3,072 A100s, sequences of 2,048
tokens, a vocabulary of 51,200, all activations recomputed, tensor parallelism within a node.  Their pipeline is
interleaved and sends each tensor parallel rank's part of the hidden states; the simulator knows plain 1F1B.  The paper
does not give the micro-batch of each row; it is taken as 1.

README of NVIDIA/Megatron-LM (2024): a GPT-3 of 175 billion parameters on 96 to 4,608 H100s, always 1,152 sequences.  It
does not give the layouts; tensor 4, pipeline 8 is taken, with the vocabulary and the sequences of its other models.

One number is fitted for each machine: the share of the peak that products of matrices reach, on one row.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from brt_dist.planning.simulator.machine import Machine, machine
from brt_dist.planning.simulator.roofline import Axes, StageWork, stage_seconds
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


def predict(row: Row, machine: Machine, modern: bool) -> Predicted:
    """Simulate a step of a row."""
    axes = row.axes
    stages = [stage_seconds(work(row, stage, modern), axes, machine) for stage in range(axes.pipeline)]
    step = simulate_step(stages, row.batch // axes.data)
    ideal = row.model.flops(row.batch, 3 if modern else 4) / axes.gpus / machine.peak
    return Predicted(ideal / step.seconds, ideal / (step.seconds - _filled(row, stages)), step.bubble)


def _filled(row: Row, stages: Sequence[StageSeconds]) -> float:
    """Seconds of the bubble that interleaving fills: all but the v-th part, v layers of a stage being v ranges."""
    mean = sum(stage.forward + stage.backward for stage in stages) / len(stages)
    ranges = row.model.layers / row.axes.pipeline
    return (row.axes.pipeline - 1) * mean * (1 - 1 / ranges)


def fitted(row: Row, of: Callable[[float], Machine], modern: bool) -> float:
    """The efficiency with which a row is met, with interleaving where it has a pipeline."""
    low, high = 0.1, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        if predict(row, of(middle), modern).interleaved < row.published:
            low = middle
        else:
            high = middle
    return low


@dataclass(frozen=True)
class Compared:
    """A row beside its prediction; `efficiency` was fitted on the row of this machine for which `is_fitted`."""

    device: str
    row: Row
    efficiency: float
    predicted: Predicted
    is_fitted: bool


def compare(device: str, rows: Sequence[Row], fit: int, modern: bool) -> list[Compared]:
    """Fit the efficiency on row number `fit`, and predict all."""
    share = fitted(rows[fit], lambda efficiency: machine(device, efficiency), modern)
    gpus = machine(device, share)
    return [Compared(device, row, share, predict(row, gpus, modern), number == fit) for number, row in enumerate(rows)]


def all_compared() -> list[Compared]:
    """Both publications.  Fitted are the first rows in which a whole node works on each layer."""
    return [*compare("a100", WEAK, 3, modern=False), *compare("h100", STRONG, 0, modern=True)]


def table(compared: Sequence[Compared]) -> list[str]:
    """In Markdown."""
    head = ("GPUs", "parameters", "tensor, pipeline, data", "published", "simulated, 1F1B", "interleaved", "1F1B waits")
    lines = [f"| {' | '.join(head)} |", "| --- | ---: | --- | ---: | ---: | ---: | ---: |"]
    for one in compared:
        axes, found = one.row.axes, one.predicted
        mark = f" (fitted: {one.efficiency:.1%} of peak)" if one.is_fitted else ""
        cells = [
            f"{axes.gpus:,} {one.device.upper()}",
            f"{one.row.model.parameters / 1e9:,.1f} B",
            f"{axes.tensor}, {axes.pipeline}, {axes.data}{mark}",
            *(f"{share:.1%}" for share in (one.row.published, found.plain, found.interleaved, found.bubble)),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    print("\n".join(table(all_compared())))
