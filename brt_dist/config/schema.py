"""The one schema of a run.  Everything a user can set is a field here, and nothing else is.

Values are plain and frozen.  What follows from them (micro-batches per step, padded vocabulary, ...) is a
property, so it cannot disagree with them.  Rules that need more than one section live in `rules.py`.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PlainValidator,
    PositiveFloat,
    PositiveInt,
    model_validator,
)
from pydantic_core import PydanticCustomError

from brt_dist.config.guards import GuardsConfig
from brt_dist.config.halves import Half, assigned
from brt_dist.config.launch import LaunchConfig
from brt_dist.config.older import DEFAULT_FFNS, DEFAULT_MIXERS, respelled_model
from brt_dist.config.section import Section, one_of, some_of
from brt_dist.errors import ConfigError
from brt_dist.kinds import FFNS, MIXERS, OPTIMIZERS

if TYPE_CHECKING:
    from brt_dist.model.ffn.base import FFN
    from brt_dist.model.mixers.base import Mixer
    from brt_dist.optim.base import OptimizerKind as Optimizer

    Mixers = Mapping[str, Mixer]
    FFNs = Mapping[str, FFN]
else:
    Mixers, FFNs = some_of(MIXERS, "kind"), some_of(FFNS, "kind")
    Optimizer = one_of(OPTIMIZERS, "name", "adamw")

__all__ = ["Config", "LaunchConfig", "Section"]

HalfT = TypeVar("HalfT", bound=Half)


class ModelConfig(Section):
    """Shape and kind of the network (arXiv 2203.07852).  Symbols in brackets are those of the paper.

    A layer is a mixer and an FFN.  `mixers` and `ffns` map a name of your choice to a section; which layers a section
    is for is its key `layers`, and what kind it is its key `kind` (unset: its name).
    """

    layers: PositiveInt = Field(12, description="number of layers [L]")
    width: PositiveInt = Field(1024, description="width of the residual stream and of the state vectors [D]")
    heads: PositiveInt = Field(8, description="attention heads [H]")
    head_dim: PositiveInt = Field(128, description="size of a head [E]; heads*head_dim need not equal width")
    vocab_size: PositiveInt | None = Field(
        None,
        description="tokens in the vocabulary [V]; unset: the dataset's, else it must equal that",
    )
    window: PositiveInt = Field(512, description="tokens in a block; a token attends to the last window tokens [W]")
    mixers: Mixers = Field(
        DEFAULT_MIXERS, description="what mixes tokens: name to section; each layer has one", validate_default=True
    )
    ffns: FFNs = Field(
        DEFAULT_FFNS, description="what works on each token: name to section; each layer has one", validate_default=True
    )
    feedback: bool = Field(False, description="every layer attends to the state of the last recurrent layer")
    logit_scale: Literal["width", "vocab"] = Field(
        "width", description="logits are divided by the square root of this; 'vocab' is the 2022 code of the paper"
    )
    dropout: NonNegativeFloat = Field(0.05, lt=1.0, description="dropout rate, vertical direction only")

    @model_validator(mode="before")
    @classmethod
    def _spell(cls, given: Any) -> Any:
        return respelled_model(given) if isinstance(given, dict) else given

    def changed(self, changes: Mapping[str, Any]) -> "ModelConfig":
        """This model with other values, validated.  changes: by key, dotted where it leads into a section."""
        values = self.model_dump()
        for key, value in changes.items():
            *sections, name = key.split(".")
            section = values
            for inner in sections:
                section = section[inner]
            section[name] = value
        return ModelConfig.model_validate(values)

    def mixer_of(self, layer: int) -> "Mixer":
        """The mixer of layer `layer`, from 0."""
        return self._half(self.mixers, "mixers", layer)

    def ffn_of(self, layer: int) -> "FFN":
        """The FFN of layer `layer`, from 0."""
        return self._half(self.ffns, "ffns", layer)

    def halves(self) -> Iterator[tuple[str, Half]]:
        """Every mixer and FFN that a layer has, with its key ("model.mixers.recurrent")."""
        for key, halves in (("mixers", self.mixers), ("ffns", self.ffns)):
            used = set(assigned(halves, self.layers))
            yield from ((f"model.{key}.{name}", half) for name, half in halves.items() if name in used)

    def feeding_layers(self) -> tuple[int, ...]:
        """Layers whose mixer has a state that can be fed back, ascending."""
        names = assigned(self.mixers, self.layers)
        return tuple(index for index, name in enumerate(names) if name and self.mixers[name].states_fed_back())

    def _half(self, halves: Mapping[str, HalfT], key: str, layer: int) -> HalfT:
        name = assigned(halves, self.layers)[layer]
        if name is None:
            raise ConfigError(f"model.{key}: layer {layer} has none; give one of them no `layers`")
        return halves[name]


def _place(value: Any) -> Path | str:
    if not isinstance(value, str | Path) or not str(value):
        raise PydanticCustomError("place_type", "must be a folder or a URL")
    # a Path would make s3:/ of s3://
    return str(value) if "://" in str(value) else Path(value)


Place = Annotated[Path | str, PlainValidator(_place, json_schema_input_type=str)]  # a folder, or a URL with ://


class MixturePart(Section):
    """A dataset of a mixture."""

    dataset: Place = Field(description="folder or URL of the dataset")
    weight: PositiveFloat = Field(description="its share of the tokens, relative to the other weights")


class CacheConfig(Section):
    """Where files of datasets at a URL are kept on each node."""

    directory: Path | None = Field(
        None, description="folder on a disk of the node; none: brt-cache-UID in its folder for temporary files"
    )
    budget_gb: PositiveFloat = Field(100.0, description="most that is kept there, in GB (10^9 bytes)")
    ahead_steps: PositiveInt = Field(64, description="steps whose shards are fetched ahead")
    retry_seconds: PositiveFloat = Field(600.0, description="longest time without an answer before the run stops")


class DataConfig(Section):
    """What is read, and in which portions."""

    dataset: Place | None = Field(None, description="folder or URL of the training dataset (holds dataset.json)")
    mixture: tuple[MixturePart, ...] = Field(
        (), description="instead of one dataset several, a list of {dataset, weight}"
    )
    validation: Place | None = Field(None, description="folder or URL of the held-out dataset")
    cache: CacheConfig = Field(default_factory=CacheConfig, description="copies of what is read from URLs")
    segment: PositiveInt = Field(
        4096, description="tokens that one step reads of a stream [N]; a multiple of model.window"
    )
    streams: PositiveInt = Field(32, description="rows of the global batch [B]")

    @property
    def training(self) -> tuple[tuple[Path | str, float], ...]:
        """Place and weight of each training dataset; one without a mixture."""
        if self.dataset is not None:
            return ((self.dataset, 1.0),)
        return tuple((part.dataset, part.weight) for part in self.mixture)


class ParallelConfig(Section):
    """The layout: world size = tensor * pipeline * data."""

    tensor: PositiveInt = Field(1, description="tensor parallel size [tp]: heads, MLP and vocabulary are split")
    pipeline: PositiveInt = Field(1, description="pipeline stages [pp]")
    data: PositiveInt = Field(1, description="data parallel size [dp]: streams are split")
    zero_stage: Literal[0, 1, 2, 3] = Field(1, description="DeepSpeed ZeRO stage")
    micro_batch: PositiveInt = Field(1, description="streams that pass the model together, per data parallel rank")
    sequence_parallel: bool = Field(
        False, description="split activations between tensor parallel regions over the sequence"
    )
    recompute: bool = Field(
        False, description="run the layers' forward again in backward instead of keeping activations"
    )

    @property
    def world_size(self) -> int:
        return self.tensor * self.pipeline * self.data


class TrackingConfig(Section):
    """Where the run is recorded."""

    enabled: bool = Field(True, description="send the run to MLflow")
    uri: str | None = Field(None, description="MLflow tracking URI; none: a SQLite file in the run directory")
    experiment: str = Field("brt", description="name of the MLflow experiment")
    system_seconds: NonNegativeFloat = Field(
        15.0, description="seconds between looks at processors, memory, disk, network and GPUs of each node; 0: never"
    )
    parent: str | None = Field(None, description="the sweep that the run belongs to; set by brt sweep")


class RunConfig(Section):
    """How long, how exact, how often, and where."""

    name: str = Field("run", min_length=1, description="name of the run")
    directory: Path = Field(description="the run directory: everything that the run writes")
    steps: PositiveInt = Field(description="optimizer steps of the whole run")
    seed: NonNegativeInt = Field(0, description="seed of weights, data order and dropout")
    precision: Literal["fp32", "bf16"] = Field("bf16", description="type of weights and activations; masters are fp32")
    log_every: PositiveInt = Field(1, description="steps between step events in metrics.jsonl")
    checkpoint_every: PositiveInt = Field(1000, description="steps between checkpoints; the last step always has one")
    checkpoints: str | None = Field(
        None, description="where checkpoints are kept: a folder or a URL (s3://...); none: in the run directory"
    )
    keep_checkpoints: PositiveInt = Field(3, description="newest checkpoints that are kept")
    keep_every: NonNegativeInt = Field(0, description="steps whose multiples are kept for good; 0: none")
    keep_best: NonNegativeInt = Field(1, description="checkpoints with the lowest held-out loss that are kept")
    init_from: str | None = Field(
        None, description="weights that the run starts with: what brt import or brt export made, a run or a checkpoint"
    )
    allow: tuple[str, ...] = Field((), description="settings that may differ from those of the checkpoint gone on from")
    evaluate_every: NonNegativeInt = Field(0, description="steps between evaluations; 0: only after the last step")
    evaluation_steps: PositiveInt = Field(50, description="segments per stream that an evaluation reads at most")
    sample_tokens: NonNegativeInt = Field(
        0, description="tokens that the model makes up after the beginning of 4 documents at each evaluation; 0: none"
    )
    memory_every: NonNegativeInt = Field(50, description="steps between looks at the sizes of the states; 0: never")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: cuda where there is one")
    guards: GuardsConfig = Field(default_factory=GuardsConfig, description="what is watched at every step")
    tracking: TrackingConfig = Field(default_factory=TrackingConfig, description="where the run is recorded")


class Config(Section):
    """A run, whole.  YAML files and `key.sub=value` overrides have exactly this shape."""

    model: ModelConfig = Field(default_factory=ModelConfig, description="the network")
    data: DataConfig = Field(description="what is read")
    parallel: ParallelConfig = Field(default_factory=ParallelConfig, description="the layout")
    optimizer: Optimizer = Field(default_factory=OPTIMIZERS["adamw"], description="the update rule")
    run: RunConfig = Field(description="length, precision, intervals, run directory")
    launch: LaunchConfig = Field(default_factory=LaunchConfig, description="where the processes run")

    @property
    def micro_batches(self) -> int:
        """Micro-batches per step and data parallel rank (gradient accumulation steps)."""
        return self.data.streams // (self.parallel.data * self.parallel.micro_batch)
