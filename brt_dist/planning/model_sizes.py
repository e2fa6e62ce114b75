"""Costs of the parts of a model on a rank of any layout, each computed once because a search needs them many times."""

from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from brt_dist.config.local_segment import LocalSegment
from brt_dist.config.schema import Config, ParallelConfig
from brt_dist.config.stages import stage_layers
from brt_dist.model.shapes import padded_vocab
from brt_dist.planning.activations import LayerActivations, Recompute, layer_activations
from brt_dist.planning.flops import layer_flops
from brt_dist.planning.gradients import Parameters
from brt_dist.planning.memory import Needed, local_part, needed_by
from brt_dist.planning.parameters import layer_parameters

T = TypeVar("T")


@dataclass(frozen=True)
class LayerWork:
    """What a layer computes for a token, on all tensor parallel ranks together.

    Attributes:
        mixer, ffn: FLOPs of a forward without attention of the mixer; cross-attention counts with the mixer.
        attention: FLOPs of attention in a forward pass, for what tokens see.
        states: state vectors that a forward updates for each token; they are reduced over tensor parallel ranks too.
        operations: of a forward and a backward of a stream's segment.
        weights: how many parameters it has, each a tensor.
    """

    mixer: float
    ffn: float
    attention: float
    states: float
    operations: int
    weights: int


class ModelSizes:
    """Sizes of the model of `config`; `model.vocab_size` must be set.  Of `config.parallel` nothing is used."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self._known: dict[Hashable, Any] = {}

    @cached_property
    def kinds(self) -> list[int]:
        """A number for each layer; layers with the same number are alike."""
        model = self.config.model
        encoder, window = model.encoder, model.window
        made = [
            (id(model.mixer_of(i)), id(model.ffn_of(i)), encoder.length(window, i), encoder.crosses(i))
            for i in range(model.layers)
        ]
        first = {parts: index for index, parts in reversed(list(enumerate(made)))}
        return [first[parts] for parts in made]

    def on(self, parallel: ParallelConfig) -> Config:
        """The config on another layout."""
        return self.config.model_copy(update={"parallel": parallel})

    def stages(self, parallel: ParallelConfig) -> list[range]:
        """The layers of each stage."""
        key = "stages", parallel.pipeline, parallel.recompute, parallel.stage_layers
        return self._once(key, lambda: stage_layers(self.on(parallel)))

    def counts(self, parallel: ParallelConfig, stage: int) -> dict[int, int]:
        """How many layers of each kind a stage has."""
        return dict(sorted(Counter(self.kinds[layer] for layer in self.stages(parallel)[stage]).items()))

    def work(self, kind: int) -> LayerWork:
        return self._once(("work", kind), lambda: self._work(kind))

    def activations(self, kind: int, local: LocalSegment, recompute: Recompute) -> LayerActivations:
        return self._once(
            ("activations", kind, local, recompute),
            lambda: layer_activations(self.config.model, kind, local, recompute),
        )

    def held(self, parallel: ParallelConfig, stage: int) -> Needed:
        """What a rank of a stage needs with a single stream; only the memory of streams depends on their number."""
        ends = stage == 0, stage == parallel.pipeline - 1
        counts = tuple(self.counts(parallel, stage).items())
        split = parallel.tensor, parallel.sequence_parallel, parallel.data, parallel.zero_stage
        key = "held", counts, ends, split, parallel.zero
        return self._once(key, lambda: self._held(parallel, stage))

    def parameters(self, parallel: ParallelConfig, stage: int) -> Parameters:
        """Of a rank of a stage."""
        kinds, is_end = (
            tuple(self.kinds[layer] for layer in self.stages(parallel)[stage]),
            stage in (0, parallel.pipeline - 1),
        )
        return self._once(
            ("parameters", kinds, is_end, parallel.tensor), lambda: self._parameters(kinds, is_end, parallel.tensor)
        )

    def _parameters(self, kinds: tuple[int, ...], is_end: bool, tensor: int) -> Parameters:
        model = self.config.model
        table = padded_vocab(model.vocab_size or 0, tensor) // tensor * model.width if is_end else 0
        return Parameters([size for kind in kinds for size in self.layer_sizes(kind, tensor)], table)

    def layer_sizes(self, kind: int, tensor: int) -> list[int]:
        """Elements of each parameter of a layer on one of `tensor` tensor parallel ranks."""
        model = self.config.model
        return self._once(
            ("sizes", kind, tensor), lambda: [local_part(one, tensor).numel for one in layer_parameters(model, kind)]
        )

    def linear_sizes(self, kind: int, tensor: int) -> list[int]:
        """The same for parameters that are not vectors."""
        model = self.config.model
        return self._once(
            ("linear", kind, tensor),
            lambda: [local_part(one, tensor).numel for one in layer_parameters(model, kind) if one.columns > 1],
        )

    def _held(self, parallel: ParallelConfig, stage: int) -> Needed:
        counts = tuple(len(layers) for layers in self.stages(parallel))
        changes = {"micro_batch": 1, "stream_memory": "device", "stage_layers": counts}
        config = self.on(parallel.model_copy(update=changes))
        data = config.data.model_copy(update={"streams": parallel.data})
        return needed_by(config.model_copy(update={"data": data}), stage)

    def _work(self, kind: int) -> LayerWork:
        model, segment = self.config.model, self.config.data.segment
        mixer, ffn = model.mixer_of(kind), model.ffn_of(kind)
        of_mixer, of_ffn = layer_flops(model, kind, True)
        seen = model.at(kind)
        share = seen.window / model.window  # of the tokens that a layer of an encoder reads
        return LayerWork(
            mixer=of_mixer - share * mixer.attention_flops(seen, True),
            attention=share * mixer.attention_flops(seen, False),
            ffn=of_ffn,
            states=mixer.states_fed_back() / model.window,
            operations=mixer.operations(model, segment) + ffn.operations(model, segment),
            weights=len(list(layer_parameters(model, kind))),
        )

    def _once(self, key: Hashable, make: Callable[[], T]) -> T:
        if key not in self._known:
            self._known[key] = make()
        found: T = self._known[key]
        return found
