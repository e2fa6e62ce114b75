"""MemSizer against a float64 loop over tokens.  What every kind of mixer must do is in test_every_mixer.py."""

import torch
from torch import Tensor

from brt_dist.config.schema import ModelConfig
from brt_dist.model.mixers.memsizer import MemSizerMixer
from tests.unit.model.networks import built


def layer() -> tuple[ModelConfig, torch.nn.Module]:
    sizes = {"layers": 1, "width": 8, "heads": 3, "head_dim": 3, "vocab_size": 24, "window": 4, "dropout": 0.0}
    given = ModelConfig.model_validate({**sizes, "mixers": {"memsizer": {"rows": 5}}, "ffns": {"relu": {"width": 8}}})
    return given, built(given).layers[0].mixer


def normed(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return (x - x.mean()) / (x.var(correction=0) + 1e-5).sqrt() * weight + bias


def loop(module: torch.nn.Module, x: Tensor, starts: Tensor) -> Tensor:
    """(N, 8) of one stream, one token after the other."""
    p = {name: value.detach() for name, value in module.named_parameters()}
    state, count, out = torch.zeros(5, 8, dtype=x.dtype), 0, []
    for n, read in enumerate(x):
        if n % 4 == 0 and starts[n // 4]:
            state, count = torch.zeros_like(state), 0
        token = read * torch.rsqrt(read.square().mean() + 1e-6) * p["norm.weight"]
        asked = (p["queries.weight"] @ token + p["queries.bias"]).view(3, 5).softmax(-1).mean(0)
        key = normed(p["keys.weight"] @ token + p["keys.bias"], p["key_norm.weight"], p["key_norm.bias"])
        value = normed(p["values.weight"] @ token + p["values.bias"], p["value_norm.weight"], p["value_norm.bias"])
        state, count = state + torch.outer(key, value), count + 1
        out.append(asked @ state / count**0.5)
    return torch.stack(out)


def test_a_loop_over_tokens_with_documents_that_start_anywhere() -> None:
    given, module = layer()
    x = torch.randn(24, 2, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    starts = torch.tensor([[1, 0, 0, 1, 0, 0], [1, 1, 0, 0, 0, 0]], dtype=torch.bool)
    blank = {name: value for name, value in built(given).blank_memory(2)[0].items()}
    y, memory = module(x, blank, starts, None)
    for stream in range(2):
        assert (y[:, stream] - loop(module, x[:, stream], starts[stream])).abs().max() < 1e-12
    assert memory["count"][:, 0].tolist() == [12, 20]


def test_one_token_at_a_time_is_all_at_once() -> None:
    """The authors' incremental decoding: blocks of one token, with sum and count carried."""
    given, module = layer()
    single = given.model_copy(update={"window": 1})
    stepped = built(single).layers[0].mixer
    x = torch.randn(24, 1, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    whole, after = module(x, built(given).blank_memory(1)[0], torch.tensor([[True] + 5 * [False]]), None)
    memory, out = built(given).blank_memory(1)[0], []
    for n in range(24):
        y, memory = stepped(x[n : n + 1], memory, torch.tensor([[n == 0]]), None)
        out.append(y)
    assert (torch.cat(out) - whole).abs().max() < 1e-12
    assert (memory["state"] - after["state"]).abs().max() < 1e-12


def test_what_is_carried_does_not_grow() -> None:
    given = ModelConfig.model_validate({"width": 1024, "window": 512, "mixers": {"memsizer": {}}})
    fields = {field.name: field.shape for field in MemSizerMixer().memory(given)}
    assert fields == {"state": (32, 1024), "count": (1,)}
