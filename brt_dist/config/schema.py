"""The schema of a run's config: every setting is a field here.

Sections are frozen.  Derived values (micro-batches per step, ...) are properties, so they cannot disagree with the
settings.  Rules that involve more than one section are in `rules.py`.
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
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from brt_dist.config.encoder import EncoderConfig
from brt_dist.config.guards import GuardsConfig
from brt_dist.config.halves import Half, assigned
from brt_dist.config.launch import LaunchConfig
from brt_dist.config.older import DEFAULT_FFNS, DEFAULT_MIXERS, respelled_model, respelled_recompute
from brt_dist.config.oracle import OracleConfig
from brt_dist.config.section import Section, one_of, some_of
from brt_dist.config.zero import ZeroConfig
from brt_dist.errors import ConfigError
from brt_dist.kinds import ATTENTION_KERNELS, FFNS, MIXERS, OBJECTIVES, OPTIMIZERS

if TYPE_CHECKING:
    from brt_dist.model.ffn.base import FFN
    from brt_dist.model.mixers.base import Mixer
    from brt_dist.optim.base import OptimizerKind as Optimizer

    Mixers = Mapping[str, Mixer]
    FFNs = Mapping[str, FFN]
    Kernel = str
    Objective = str
else:
    Mixers, FFNs = some_of(MIXERS, "kind"), some_of(FFNS, "kind")
    Optimizer = one_of(OPTIMIZERS, "name", "adamw")
    Kernel, Objective = Literal[("auto", *ATTENTION_KERNELS)], Literal[tuple(OBJECTIVES)]

__all__ = ["Config", "LaunchConfig", "Section"]

HalfT = TypeVar("HalfT", bound=Half)


class ModelConfig(Section):
    """The network (arXiv 2203.07852).  Symbols in brackets are the paper's.

    A layer is a mixer and an FFN.  `mixers` and `ffns` map a name of your choice to a section; the section's `layers`
    says which layers use it, and its `kind` what it is (unset: the same as its name).
    """

    layers: PositiveInt = Field(12, description="number of layers [L]")
    width: PositiveInt = Field(1024, description="width of the residual stream and of the state vectors [D]")
    heads: PositiveInt = Field(8, description="attention heads [H]")
    head_dim: PositiveInt = Field(128, description="size of each head [E]; heads*head_dim need not equal width")
    vocab_size: PositiveInt | None = Field(
        None,
        description="vocabulary size [V]; unset: taken from the dataset; if set, it must match the dataset",
    )
    window: PositiveInt = Field(512, description="block size and attention window, in tokens [W]")
    mixers: Mixers = Field(
        DEFAULT_MIXERS, description="mixers by name; every layer uses one of them", validate_default=True
    )
    ffns: FFNs = Field(DEFAULT_FFNS, description="FFNs by name; every layer uses one of them", validate_default=True)
    objective: Objective = Field(
        "causal",
        description="training objective: predict the next token (causal), predict masked tokens (mlm; for encoders, "
        "which may read what follows), restore missing spans with an encoder and a decoder (denoise), or predict the "
        "next symbol of a formal language with heads for its machine (oracle)",
    )
    encoder: EncoderConfig = Field(
        default_factory=EncoderConfig, description="the encoder of an encoder-decoder (objective: denoise)"
    )
    oracle: OracleConfig = Field(
        default_factory=OracleConfig, description="the language, and heads for its machine (objective: oracle)"
    )
    repeat: PositiveInt = Field(
        1, description="how often the stack of layers runs, with the same weights; each run has its own memory"
    )
    feedback: bool = Field(False, description="let every layer attend to the state of the last recurrent layer")
    attention_kernel: Kernel = Field(
        "auto",
        description="how window attention is computed, which changes rounding only: triton (GPUs), blocked "
        "(sub-blocks, for CPUs), plain (as in 0.1.0), or auto: the fastest for the device",
    )
    logit_scale: Literal["width", "vocab"] = Field(
        "width", description="divide the logits by the square root of this; 'vocab': as in the paper's 2022 code"
    )
    dropout: NonNegativeFloat = Field(
        0.05, lt=1.0, description="dropout rate; not applied to the recurrent state's own path"
    )

    @model_validator(mode="before")
    @classmethod
    def _spell(cls, given: Any) -> Any:
        return respelled_model(given) if isinstance(given, dict) else given

    def changed(self, changes: Mapping[str, Any]) -> "ModelConfig":
        """A validated copy with some values changed.

        Args:
            changes: new values by key; dots lead into sections ("mixers.recurrent.states").
        """
        values = self.model_dump()
        for key, value in changes.items():
            *sections, name = key.split(".")
            section = values
            for inner in sections:
                section = section[inner]
            section[name] = value
        return ModelConfig.model_validate(values)

    def with_tokens(self, tokens: int) -> "ModelConfig":
        """A copy for a tokenizer of `tokens` tokens; those that the objective adds come after them."""
        return self.model_copy(update={"vocab_size": tokens + OBJECTIVES[self.objective].added_tokens})

    def must_continue_text(self, where: str) -> None:
        """Raise a ConfigError if the model at `where` was not trained to predict the next token."""
        objective = OBJECTIVES[self.objective]
        if not objective.continues_text:
            raise ConfigError(
                f"{where} was trained with model.objective={self.objective}, {objective.purpose}: it cannot continue "
                "text or score it from left to right; its run evaluates it (accuracy in metrics.jsonl)"
            )

    @property
    def depth(self) -> int:
        """Layers that a token passes; number `layers` is the first layer again."""
        return self.layers * self.repeat

    def mixer_of(self, layer: int) -> "Mixer":
        """The mixer of layer `layer` (from 0, below `depth`)."""
        return self._half(self.mixers, "mixers", layer)

    def ffn_of(self, layer: int) -> "FFN":
        """The FFN of layer `layer` (from 0, below `depth`)."""
        return self._half(self.ffns, "ffns", layer)

    def at(self, layer: int) -> "ModelConfig":
        """The model as layer `layer` sees it: a layer of an encoder may read fewer tokens of a block."""
        window = self.encoder.length(self.window, layer)
        return self if window == self.window else self.model_copy(update={"window": window})

    def halves(self) -> Iterator[tuple[str, Half]]:
        """Every mixer and FFN that some layer uses, with its key ("model.mixers.recurrent")."""
        for key, halves in (("mixers", self.mixers), ("ffns", self.ffns)):
            used = set(assigned(halves, self.layers))
            yield from ((f"model.{key}.{name}", half) for name, half in halves.items() if name in used)

    def feeding_layers(self) -> tuple[int, ...]:
        """Layers whose mixer has a state that can be fed back, in ascending order."""
        names = assigned(self.mixers, self.layers)
        return tuple(index for index, name in enumerate(names) if name and self.mixers[name].states_fed_back())

    def _half(self, halves: Mapping[str, HalfT], key: str, layer: int) -> HalfT:
        name = assigned(halves, self.layers)[layer % self.layers]
        if name is None:
            raise ConfigError(f"model.{key}: no entry covers layer {layer}; leave `layers` of one of them unset")
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
    weight: PositiveFloat = Field(description="share of the tokens, relative to the other weights")


class CacheConfig(Section):
    """The cache on each node for datasets that are read from a URL."""

    directory: Path | None = Field(
        None, description="cache folder on a local disk of each node; unset: brt-cache-UID in the temporary directory"
    )
    budget_gb: PositiveFloat = Field(100.0, description="largest size of the cache, in GB (10^9 bytes)")
    ahead_steps: PositiveInt = Field(64, description="how many steps ahead shards are prefetched")
    fetch: Literal["auto", "shards", "documents"] = Field(
        "auto",
        description="fetch whole shards, or only the documents that are read; auto: shards if the dataset fits in the "
        "cache or data.shuffle_shards is set, otherwise documents if the dataset has their hashes",
    )
    retry_seconds: PositiveFloat = Field(
        600.0, description="how long to retry a server that does not respond before the run fails"
    )


class DataConfig(Section):
    """The datasets, and how much of them a step reads."""

    dataset: Place | None = Field(None, description="folder or URL of the training dataset (holds dataset.json)")
    mixture: tuple[MixturePart, ...] = Field(
        (), description="several training datasets in place of data.dataset: a list of {dataset, weight}"
    )
    validation: Place | None = Field(None, description="folder or URL of the held-out dataset")
    shuffle_shards: NonNegativeInt = Field(
        0,
        description="how many shards are shuffled together: shards come in random order, and documents are shuffled "
        "within groups of this many shards; 0: across the whole dataset",
    )
    cache: CacheConfig = Field(
        default_factory=CacheConfig, description="local cache of datasets that are read from URLs"
    )
    verify: bool = Field(
        True, description="compare each document of a local dataset with its sha256 when it is first read"
    )
    segment: PositiveInt = Field(
        4096, description="tokens that each stream reads per step [N]; a multiple of model.window"
    )
    streams: PositiveInt = Field(32, description="number of streams, the rows of the global batch [B]")

    @property
    def training(self) -> tuple[tuple[Path | str, float], ...]:
        """Place and weight of each training dataset; a single one if there is no mixture."""
        if self.dataset is not None:
            return ((self.dataset, 1.0),)
        return tuple((part.dataset, part.weight) for part in self.mixture)


class ParallelConfig(Section):
    """The layout: world size = tensor * pipeline * data.  `parallel: auto` is short for `parallel: {auto: true}`."""

    auto: bool = Field(
        False, description="let the plan choose the layout when the run starts, for the GPUs that it gets"
    )
    tensor: PositiveInt = Field(1, description="tensor parallel size [tp]: splits heads, MLPs and the vocabulary")
    pipeline: PositiveInt = Field(1, description="pipeline stages [pp]")
    stage_layers: tuple[PositiveInt, ...] = Field(
        (), description="layers of each pipeline stage, in order; unset: as equal as possible in FLOPs, logits included"
    )
    data: PositiveInt = Field(1, description="data parallel size [dp]: splits the streams")
    zero_stage: Literal[0, 1, 2, 3] = Field(1, description="DeepSpeed ZeRO stage")
    zero: ZeroConfig = Field(default_factory=ZeroConfig, description="details of ZeRO: reduction, buckets, offload")
    micro_batch: PositiveInt = Field(1, description="streams per micro-batch, on each data parallel rank")
    uneven_streams: bool = Field(
        False,
        description="let data parallel ranks hold different numbers of streams: some then have an idle micro-batch",
    )
    sequence_parallel: bool = Field(
        False, description="also split activations over the sequence, between tensor parallel regions"
    )
    recompute: Literal["none", "attention", "layer"] = Field(
        "none",
        description="what the backward pass recomputes instead of storing: none, mixers (attention), or layers",
    )
    stream_memory: Literal["device", "host"] = Field(
        "device",
        description="where streams' memory is kept; host: in host memory, with a few micro-batches' on the device",
    )

    @field_validator("recompute", mode="before")
    @classmethod
    def _spell(cls, given: Any) -> Any:
        return respelled_recompute(given)

    @property
    def world_size(self) -> int:
        return self.tensor * self.pipeline * self.data


class TrackingConfig(Section):
    """MLflow tracking."""

    enabled: bool = Field(True, description="track the run in MLflow")
    uri: str | None = Field(
        None,
        description="MLflow tracking URI; unset: MLFLOW_TRACKING_URI, or else mlflow.db beside the run directory",
    )
    experiment: str = Field(
        "brt", min_length=1, description="name of the MLflow experiment; unset: MLFLOW_EXPERIMENT_NAME, or else brt"
    )
    system_seconds: NonNegativeFloat = Field(
        15.0, description="seconds between system metrics of each node (CPU, memory, disk, network, GPUs); 0: none"
    )
    log_model: bool = Field(
        False, description="at the end of the run, log its weights as a model that `mlflow models serve` runs"
    )
    register_model: str | None = Field(
        None, min_length=1, description="name to register that model under; implies run.tracking.log_model"
    )
    parent: str | None = Field(None, description="the sweep that the run belongs to; set by `brt sweep`")

    @property
    def logs_model(self) -> bool:
        return self.enabled and (self.log_model or self.register_model is not None)


class RunConfig(Section):
    """Length, precision, intervals and location of the run."""

    name: str = Field("run", min_length=1, description="name of the run")
    directory: Path = Field(description="the run directory; everything that the run writes goes here")
    steps: PositiveInt = Field(description="length of the whole run, in steps")
    seed: NonNegativeInt = Field(0, description="seed for initial weights, data order and dropout")
    precision: Literal["fp32", "bf16"] = Field(
        "bf16", description="type of weights and activations; master weights are always fp32"
    )
    log_every: PositiveInt = Field(1, description="steps between step events in metrics.jsonl")
    checkpoint_every: PositiveInt = Field(
        1000, description="steps between checkpoints; one is always saved after the last step"
    )
    checkpoints: str | None = Field(
        None, description="where checkpoints are saved: a folder or a URL (s3://...); unset: in the run directory"
    )
    checkpoint_seconds: PositiveFloat = Field(
        7200.0,
        description="longest time, in seconds, that a rank waits for another while a checkpoint is written; the "
        "collectives of training have their own limit (run.guards.collective_seconds)",
    )
    keep_checkpoints: PositiveInt = Field(3, description="how many of the newest checkpoints to keep")
    keep_every: NonNegativeInt = Field(
        0, description="never remove the checkpoints at multiples of this step; 0: no such checkpoints"
    )
    keep_best: NonNegativeInt = Field(
        1, description="how many of the best checkpoints to keep, by held-out loss if there is one, else training loss"
    )
    keep_memory: PositiveInt | None = Field(
        None,
        description="how many of the newest checkpoints keep the memory of the streams, which may be most of their "
        "size; older ones keep everything else; unset: all",
    )
    init_from: str | None = Field(
        None,
        description="initial weights: output of `brt import` or `brt export`, a run directory or a checkpoint, or a "
        "plain Hugging Face GPT (GPT-2, LLaMA; a folder or hf://OWNER/NAME), from which all weights that fit are used",
    )
    allow_oversize: bool = Field(
        False, description="start even if the plan says that ranks need more memory than their devices have"
    )
    allow: tuple[str, ...] = Field((), description="settings that may differ from those of the checkpoint on resume")
    evaluate_every: NonNegativeInt = Field(0, description="steps between evaluations; 0: only after the last step")
    evaluation_steps: PositiveInt = Field(50, description="largest number of segments an evaluation reads per stream")
    evaluate_parts: bool = Field(
        True,
        description="also evaluate held-out text with only the state cleared, and with only the cache cleared, to show "
        "what each is worth",
    )
    evaluate_training: bool = Field(True, description="also evaluate on the training data, if data.validation is set")
    sample_tokens: NonNegativeInt = Field(
        0, description="tokens to generate at each evaluation, continuing the beginnings of 4 documents; 0: none"
    )
    memory_every: NonNegativeInt = Field(50, description="steps between statistics of the memory; 0: none")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: cuda if available, else cpu")
    guards: GuardsConfig = Field(default_factory=GuardsConfig, description="checks at every step")
    tracking: TrackingConfig = Field(default_factory=TrackingConfig, description="MLflow tracking")


class Config(Section):
    """The config of a run.  YAML files and `key.sub=value` overrides have exactly this shape."""

    model: ModelConfig = Field(default_factory=ModelConfig, description="the network")
    data: DataConfig = Field(description="datasets, segments and streams")
    parallel: ParallelConfig = Field(default_factory=ParallelConfig, description="the layout")
    optimizer: Optimizer = Field(default_factory=OPTIMIZERS["adamw"], description="the optimizer and its learning rate")
    run: RunConfig = Field(description="length, precision, intervals, run directory")
    launch: LaunchConfig = Field(default_factory=LaunchConfig, description="backend, nodes and recovery")

    @property
    def micro_batches(self) -> int:
        """Micro-batches per step on each data parallel rank (gradient accumulation steps), idle ones included."""
        return -(-self.data.streams // (self.parallel.data * self.parallel.micro_batch))
