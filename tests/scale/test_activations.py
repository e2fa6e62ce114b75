"""Formulas of activations against what is counted, on tensors without data, at the shapes of 7B and 70B models."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from brt_dist.config.schema import Config
from brt_dist.kinds import FFNS, MIXERS
from brt_dist.model.dropout import Dropout
from brt_dist.model.layers import Layer
from brt_dist.model.linear import megatron_config
from brt_dist.model.memory import carried
from brt_dist.model.model import BlockRecurrentModel, FinalNorm, TokenEmbedding
from brt_dist.model.recompute import Recompute, calls
from brt_dist.planning.activations import head_activations, layer_activations, local_segment
from tests.scale.activations import Operations, Peak
from tests.scale.meta import meta_world

SIZES = {"7B": {"width": 4096, "heads": 32}, "70B": {"width": 8192, "heads": 64}}
LAYOUTS: dict[str, dict[str, Any]] = {
    "7B": {},
    "70B": {"tensor": 8, "sequence_parallel": True},
}
MIXER_SETTINGS: list[tuple[str, dict[str, Any]]] = [
    ("window", {}),
    ("window", {"positions": "rotary"}),
    ("window", {"qkv": "multiplicative"}),
    ("recurrent", {}),
    ("recurrent", {"cell": "single"}),
    ("recurrent", {"cell": "dual", "gate": "lstm", "positions": "rotary"}),
    ("recurrent", {"cell": "single", "gate": "lstm", "state_dtype": "model"}),
    ("bidirectional", {}),
    ("linear", {}),
    ("delta", {}),
    ("delta", {"gate": True, "value_dim": 64}),
    ("gated_delta", {}),
    ("memsizer", {}),
    ("lstm", {}),
    ("fnet", {}),
    ("fourier_memory", {}),
    ("fourier_memory", {"blocks": 2, "keep": 1.0}),
    ("switchhead", {}),
    ("switchhead", {"experts": 1, "chosen": 1}),
    ("switchhead", {"chosen": 1, "entropy": 0.0}),
    ("nprf_rpe", {}),
    ("nprf_rpe", {"features": 256, "normalized": False}),
    ("nprf_rpe", {"method": "fft"}),
    ("bst", {}),
    ("bst", {"filter": "unstructured", "carry": False}),
    ("bst", {"contexts": "multi_head", "filter_states": 4}),
    ("bst", {"contexts": "multi_filter"}),
    ("bst", {"contexts": "multi_filter", "filter": "unstructured", "carry": False}),
]
# less those that a test of their own has, and a loop over tokens, which takes long
OTHERS = [mixer for mixer in MIXER_SETTINGS if mixer[0] not in ("window", "recurrent", "lstm")]
FFN_SETTINGS: list[tuple[str, dict[str, Any]]] = [
    ("relu", {"width": 16384}),
    ("gelu", {"width": 16384}),
    ("swiglu", {"width": 11264}),
    ("sparse", {"blocks": 256}),
    ("sigma_moe", {}),
    ("sigma_moe", {"entropy": 0.0, "chosen": 4}),
]


def config(size: str, mixer: tuple[str, Mapping[str, Any]], ffn: tuple[str, Mapping[str, Any]], **given: Any) -> Config:
    """One layer; a loop over tokens reads one block only."""
    model = {"layers": 1, "head_dim": 128, "window": 512, "dropout": 0.0, "vocab_size": 131072, **SIZES[size]}
    model |= {"mixers": {mixer[0]: {"layers": None, **mixer[1]}}, "ffns": {ffn[0]: ffn[1]}}
    layout = {**LAYOUTS[size], **given.pop("parallel", {})}
    return Config.model_validate(
        {
            "model": model | given,
            "data": {"dataset": "unused", "segment": 512 if mixer[0] == "lstm" else 4096, "streams": 2},
            "parallel": layout,
            "run": {"directory": "unused", "steps": 1},
        }
    )


@contextmanager
def world(given: Config) -> Iterator[None]:
    """This process as a rank of the layout; routers choose all experts equally often, and no masks are drawn."""
    with meta_world(given), pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            torch, "bincount", lambda x, minlength: torch.full((minlength,), x.numel() // minlength, device="cpu")
        )
        patch.setattr(Dropout, "_draw", lambda self, shape, device, *key: torch.empty(shape, device=device))
        yield


def hidden(given: Config) -> Tensor:
    part = local_segment(given)
    shape = (part.own_tokens // part.streams, part.streams, given.model.width)
    return torch.empty(shape, dtype=_dtype(given), requires_grad=True)


def _dtype(given: Config) -> torch.dtype:
    return torch.bfloat16 if given.run.precision == "bf16" else torch.float32


def counted(given: Config, recompute: Recompute = "none", backward: bool = False) -> int:
    """Bytes that a layer keeps for its backward, its input among them; or those in use at the peak of the backward."""
    model, how, part = given.model, calls(recompute), local_segment(given)
    with world(given):
        layer = Layer(model, 0, megatron_config(given.parallel.sequence_parallel)).to(_dtype(given))
        x, starts = hidden(given), torch.zeros(part.streams, part.segment // part.window, dtype=torch.bool)
        dropout = Dropout(model.dropout, 0, 0, tuple(range(part.streams)), part.sequence_parallel)
        memory = layer.blank_memory(part.streams)
        with Operations() as operations:
            y, after = how.layer(layer, x, memory, starts, dropout, None, how.mixer)
            after = carried(after)  # as in training, gradients end here
        if not backward:
            return operations.bytes_left([y, *after.values()]) + x.nbytes
        del after
        with Peak(operations, layer.parameters()) as peak:  # gradients of weights are planned separately
            y.backward(torch.empty_like(y))
        return peak.bytes + x.nbytes - y.nbytes  # the output is the next layer's input


def with_precision(given: Config, precision: str) -> Config:
    return given.model_copy(update={"run": given.run.model_copy(update={"precision": precision})})


def planned(given: Config, recompute: Recompute = "none") -> int:
    found = layer_activations(given.model, 0, local_segment(given), recompute)
    return found.kept


def test_every_kind_is_counted() -> None:
    assert {kind for kind, _ in MIXER_SETTINGS} == set(MIXERS)
    assert {kind for kind, _ in FFN_SETTINGS} == set(FFNS)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mixer", MIXER_SETTINGS, ids=str)
def test_mixers(mixer: tuple[str, dict[str, Any]], size: str) -> None:
    given = config(size, mixer, ("relu", {"width": 4096}))
    assert planned(given) == pytest.approx(counted(given), rel=0.05)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("ffn", FFN_SETTINGS, ids=str)
def test_ffns(ffn: tuple[str, dict[str, Any]], size: str) -> None:
    given = config(size, ("window", {}), ffn)
    for recompute in ("none", "attention"):  # without and with most of the layer's other half
        assert planned(given, recompute) == pytest.approx(counted(given, recompute), rel=0.05)


@pytest.mark.parametrize("mixer", ["window", "recurrent", "gated_delta"])
def test_other_layouts_dropout_and_recompute(mixer: str) -> None:
    relu = ("relu", {"width": 28672})
    for recompute in ("attention", "layer"):
        given = config("70B", (mixer, {}), relu)
        assert planned(given, recompute) == pytest.approx(counted(given, recompute), rel=0.05)
    for changes in ({"dropout": 0.1}, {"parallel": {"sequence_parallel": False, "tensor": 2}}):
        given = config("70B", (mixer, {}), relu, **changes)
        assert planned(given) == pytest.approx(counted(given), rel=0.05)


@pytest.mark.parametrize("size", SIZES)
def test_layers_of_float32(size: str) -> None:
    for mixer in ("window", "recurrent", "linear", "switchhead", "bst"):
        given = config(size, (mixer, {}), ("sigma_moe", {}))
        given = with_precision(given, "fp32")
        assert planned(given) == pytest.approx(counted(given), rel=0.05)


@pytest.mark.parametrize("recompute", ["none", "attention", "layer"])
def test_an_encoder_and_its_decoder(recompute: Recompute) -> None:
    """Layers of the encoder have fewer tokens from the second on; the decoder keeps what it reads of it."""
    given = config("7B", ("window", {}), ("relu", {"width": 4096}))
    model = given.model.model_dump() | {"objective": "denoise", "layers": 3}
    model |= {"encoder": {"layers": 2, "shortened": [1], "keep": 0.25}}
    model["mixers"] = {"window": {}, "bidirectional": {"layers": [0, 1]}}
    data = {"dataset": "unused", "segment": 512, "streams": 8}
    changes = {"model": model, "data": data, "parallel": {"micro_batch": 8}}
    given = Config.model_validate(given.model_dump() | changes)
    part = local_segment(given)
    with world(given):
        network = BlockRecurrentModel(given.model, None, recompute=recompute).bfloat16()
        tokens = torch.zeros(part.streams, part.segment, dtype=torch.long)
        starts, memory = torch.ones(part.streams, 1, dtype=torch.bool), network.blank_memory(part.streams)
        with Operations() as operations:
            losses, after = network(tokens, memory, starts, None, tokens, tokens)
        found = operations.bytes_left([losses, *(one for layer in after for one in layer.values())])
    layers = sum(layer_activations(given.model, layer, part, recompute).kept for layer in range(3))
    assert layers + head_activations(given.model, part) == pytest.approx(found, rel=0.05)


@pytest.mark.parametrize("recompute", ["none", "attention", "layer"])
@pytest.mark.parametrize("size", SIZES)
def test_a_state_that_other_layers_see(size: str, recompute: Recompute) -> None:
    """With feedback all layers run on a block before they run on the next, and keep what passes between."""
    given = config(size, ("window", {}), ("relu", {"width": 4096}))
    model = given.model.model_dump() | {"feedback": True, "layers": 3}
    model["mixers"] = {"window": {}, "recurrent": {"layers": [1]}}
    given = Config.model_validate(given.model_dump() | {"model": model})
    part = local_segment(given)
    with world(given):
        network = BlockRecurrentModel(given.model, None, part.sequence_parallel, recompute).bfloat16()
        starts = torch.zeros(part.streams, part.segment // part.window, dtype=torch.bool)
        tokens = torch.zeros(part.streams, part.segment, dtype=torch.long)
        memory = network.blank_memory(part.streams)
        with Operations() as operations:
            losses, after = network(tokens, memory, starts, None, tokens)
        found = operations.bytes_left([losses, *(one for layer in after for one in layer.values())])
    layers = sum(layer_activations(given.model, layer, part, recompute).kept for layer in range(3))
    assert layers + head_activations(given.model, part) == pytest.approx(found, rel=0.05)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("recompute", ["none", "attention", "layer"])
@pytest.mark.parametrize("mixer", ["window", "recurrent", "delta"])
def test_a_backward_needs_what_was_planned(mixer: str, recompute: Recompute, precision: str) -> None:
    given = with_precision(config("7B", (mixer, {}), ("relu", {"width": 16384})), precision)
    found = layer_activations(given.model, 0, local_segment(given), recompute)
    assert found.workspace + found.kept == pytest.approx(counted(given, recompute, backward=True), rel=0.08)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize(
    "settings",
    [
        *((mixer, ("relu", {"width": 1024})) for mixer in OTHERS),
        *((("window", {}), FFN_SETTINGS[n]) for n in (1, 2, 4)),
    ],
    ids=str,
)
def test_other_backwards(
    settings: tuple[tuple[str, dict[str, Any]], tuple[str, dict[str, Any]]], precision: str
) -> None:
    given = with_precision(config("7B", *settings), precision)
    found = layer_activations(given.model, 0, local_segment(given), "none")
    assert found.workspace + found.kept == pytest.approx(counted(given, "none", backward=True), rel=0.15)


@pytest.mark.parametrize("size", SIZES)
def test_the_head(size: str) -> None:
    given = config(size, ("window", {}), ("relu", {}))
    part = local_segment(given)
    with world(given):
        parallel = megatron_config(part.sequence_parallel)
        norm, embedding = FinalNorm(given.model).bfloat16(), TokenEmbedding(given.model, parallel).bfloat16()
        x, target = hidden(given), torch.zeros(part.segment, part.streams, dtype=torch.long)
        with Operations() as operations:
            losses = embedding.losses(norm(x), target)
        found = operations.bytes_left([losses]) + x.nbytes
    assert head_activations(given.model, part) == pytest.approx(found, rel=0.05)


@pytest.mark.parametrize(
    "settings",
    [
        *((mixer, ("relu", {})) for mixer in MIXER_SETTINGS if mixer[0] != "lstm"),
        *((("window", {}), FFN_SETTINGS[n]) for n in (1, 2, 4)),
    ],
    ids=str,
)
def test_operations(settings: tuple[tuple[str, dict[str, Any]], tuple[str, dict[str, Any]]]) -> None:
    """About how many operations a device gets, with the kernel that has as many as the one for GPUs."""
    given = config("7B", *settings, attention_kernel="plain")
    model, part = given.model, local_segment(given)
    with world(given):
        layer = Layer(model, 0, megatron_config()).bfloat16()
        starts = torch.zeros(part.streams, part.segment // part.window, dtype=torch.bool)
        with Operations() as ahead:
            y, after = layer(hidden(given), layer.blank_memory(part.streams), starts)
            del after
        with Operations() as back:
            y.backward(torch.empty_like(y))
    declared = sum(half.operations(model, part.segment) for half in (model.mixer_of(0), model.ffn_of(0)))
    assert declared == pytest.approx(ahead.count + back.count, rel=0.3)
