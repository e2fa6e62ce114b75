"""A language model of MoEUT (arXiv 2405.16039): logits, regulariser and gradients of the loss with it.

Layers are the mixer and the FFN of the library; embedding, last norm and output are those of the reference.  Repeats
and numbers of chosen experts are in no array.  What the entry's text does not say is fitted.
"""

import re
from collections.abc import Sequence
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from brt_dist.config.schema import ModelConfig
from brt_dist.model.dropout import Dropout
from brt_dist.model.expert_layers import SigmaMoE, SwitchHead
from brt_dist.model.ffn.sigma_moe import SigmaMoEFFN
from brt_dist.model.linear import megatron_config
from brt_dist.model.mixers.switchhead import SwitchHeadMixer
from brt_dist.model.routing import Routing, negative_entropy
from tests.golden.differences import Differences, differences, present, scaled

ARRAYS = ("tokens", "logits", "p_embedding_weight", "p_lm_head_weight", "p_out_norm_weight")
LAYER = "p_transformer_layers_"
MOST_REPEATS = 6


class Choice(NamedTuple):
    repeats: int
    of_ffn: int
    of_attention: int


class Model:
    """The reference's model from our halves.

    Args:
        weights: by the reference's names.
    """

    def __init__(self, weights: dict[str, Tensor], tokens: int, choice: Choice) -> None:
        self.weights, self.choice = weights, choice
        groups = 1 + max(int(name.removeprefix(LAYER).split("_")[0]) for name in weights if name.startswith(LAYER))
        self.layers = [self._layer(f"{LAYER}{group}_", tokens, group) for group in range(groups)]

    def _layer(self, prefix: str, tokens: int, index: int) -> tuple[SwitchHead, SigmaMoE]:
        value = {name.removeprefix(prefix): tensor for name, tensor in self.weights.items() if name.startswith(prefix)}
        experts, width, hidden = value["ffn_keys"].shape
        routed = "attention_sel_v" in value
        total = len(value["attention_sel_o"])
        size = value["attention_v"].shape[2] if routed else len(value["attention_v"]) // total
        heads = len(value["attention_q_weight"]) // size
        model = ModelConfig(layers=1, width=width, heads=heads, head_dim=size, window=tokens, dropout=0.0)
        attention = SwitchHeadMixer(experts=total // heads, chosen=self.choice.of_attention)
        ffn = SigmaMoEFFN(experts=experts, chosen=self.choice.of_ffn, expert_width=hidden)
        parallel = megatron_config()
        made = SwitchHead(attention, model, index, parallel), SigmaMoE(ffn, model, index, parallel)
        with torch.no_grad():
            for half, names in zip(made, (ours_of_attention(value, heads), ours_of_ffn(value)), strict=True):
                for name, tensor in names.items():
                    half.get_parameter(name).copy_(tensor)
        return made

    def __call__(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, T, V), and the regulariser, whose gradient the logits carry."""
        x = self.weights["p_embedding_weight"][tokens].transpose(0, 1)
        starts = torch.ones(len(tokens), 1, dtype=torch.bool)
        shared = Routing(repeats=self.choice.repeats)
        for repeat in range(self.choice.repeats):
            routing = Routing(self.choice.repeats, repeat, sums=shared.sums)
            dropout = Dropout(0.0, 0, 0, range(len(tokens)), routing=routing)
            for attention, ffn in self.layers:
                size, heads = attention.model.head_dim, attention.model.heads
                cache = x.new_zeros(len(tokens), tokens.shape[1], heads, size)
                mixed, _ = attention(x, {"keys": cache, "values": cache}, starts, dropout)
                x = x + mixed
                x = x + ffn(x, dropout)
        w = self.weights
        x = functional.layer_norm(x, x.shape[-1:], w["p_out_norm_weight"], w["p_out_norm_bias"])
        return functional.linear(x, w["p_lm_head_weight"], w["p_lm_head_bias"]).transpose(0, 1), self._regulariser(
            shared, tokens.shape[1]
        )

    def _regulariser(self, routing: Routing, tokens: int) -> Tensor:
        total = torch.zeros(())
        for router in {router for router, _ in routing.sums}:
            sums = [routing.sums[router, repeat] for repeat in range(self.choice.repeats)]
            count = torch.tensor(float(tokens * self.choice.repeats))
            weight = 0.01 if router.endswith("ffn") else 0.001
            total = total + weight * negative_entropy(torch.stack(sums).logsumexp(0) - count.log()).detach()
        return total


def ours_of_ffn(value: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        "norm.weight": value["ln2_weight"],
        "norm.bias": value["ln2_bias"],
        "router": value["ffn_expert_sel"],
        "keys": value["ffn_keys"].permute(2, 0, 1).flatten(0, 1),
        "values": value["ffn_values"].transpose(0, 1).flatten(0, 1),
    }


def ours_of_attention(value: dict[str, Tensor], heads: int) -> dict[str, Tensor]:
    pair = [value[f"attention_{name}_weight"].unflatten(0, (heads, -1)) for name in ("q", "k")]
    routed = "attention_sel_v" in value
    ours = {
        "norm.weight": value["ln1_weight"],
        "norm.bias": value["ln1_bias"],
        "projections": torch.stack(pair, 1).flatten(0, 2),
        "output_router": value["attention_sel_o"],
        "values": value["attention_v"].transpose(1, 2).flatten(0, 1) if routed else value["attention_v"],
        "outputs": value["attention_o"].flatten(0, 1) if routed else value["attention_o"].T,
    }
    return ours | ({"value_router": value["attention_sel_v"]} if routed else {})


def check(arrays: dict[str, Tensor], entry: dict[str, Any]) -> Differences:
    tokens = arrays["tokens"].long()
    weights = {name: value.clone().requires_grad_() for name, value in arrays.items() if name.startswith("p_")}
    model = Model(weights, tokens.shape[1], best(arrays, weights, tokens, str(entry.get("what"))))
    logits, regulariser = model(tokens)
    entropy = functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    ours = {"logits": logits, "reg_loss": regulariser.reshape(1), "loss": entropy + regulariser}
    gradients = dict(of(model, entropy)) if any(name.startswith("g_") for name in arrays) else {}
    return differences(present(ours, arrays), gradient=[(found, arrays[name]) for name, found in gradients.items()])


def best(arrays: dict[str, Tensor], weights: dict[str, Tensor], tokens: Tensor, text: str) -> Choice:
    experts = len(arrays[f"{LAYER}0_ffn_keys"])
    size = arrays[f"{LAYER}0_attention_v"].shape[-1] if f"{LAYER}0_attention_sel_v" in arrays else None
    heads = len(arrays[f"{LAYER}0_attention_q_weight"]) // size if size else 0
    attention = len(arrays[f"{LAYER}0_attention_sel_v"]) // heads if heads else 1

    def distance(choice: Choice) -> float:
        with torch.no_grad():
            return scaled(Model(weights, tokens.shape[1], choice)(tokens)[0], arrays["logits"])

    sizes = product(
        told(text, r"(\d+) repeats", MOST_REPEATS),
        range(1, experts + 1),
        told(text, r"att\w* \d+ experts k=(\d+)", attention),
    )
    return min((Choice(*given) for given in sizes), key=distance)


def told(text: str, pattern: str, most: int) -> Sequence[int]:
    found = re.search(pattern, text)
    return [int(found[1])] if found else range(1, most + 1)


def of(model: Model, loss: Tensor) -> Any:
    """Gradients by the reference's names: those of our parameters, put in the reference's shapes by autograd."""
    halves = [parameter for layer in model.layers for half in layer for parameter in half.parameters()]
    names = ["embedding_weight", "lm_head_weight", "lm_head_bias", "out_norm_weight", "out_norm_bias"]
    ends = [model.weights[f"p_{name}"] for name in names]
    found = torch.autograd.grad(loss, [*ends, *halves])
    yield from ((f"g_{name}", gradient) for name, gradient in zip(names, found, strict=False))
    by_parameter = dict(zip(halves, found[len(ends) :], strict=True))
    for group, (attention, ffn) in enumerate(model.layers):
        prefix = f"{LAYER}{group}_"
        theirs = {name.removeprefix(prefix): t for name, t in model.weights.items() if name.startswith(prefix)}
        for half, ours in ((attention, ours_of_attention(theirs, attention.model.heads)), (ffn, ours_of_ffn(theirs))):
            moved = list(transposed(half, ours, by_parameter))
            inputs = list(theirs.values())
            back = torch.autograd.grad(sum(moved), inputs, allow_unused=True)
            for name, gradient in zip(theirs, back, strict=True):
                if gradient is not None:
                    yield f"g_{prefix.removeprefix('p_')}{name}", gradient


def transposed(half: nn.Module, ours: dict[str, Tensor], by_parameter: dict[nn.Parameter, Tensor]) -> Any:
    """Numbers whose gradients by the reference's tensors are ours in their shapes."""
    for name, tensor in ours.items():
        yield (tensor * by_parameter[half.get_parameter(name)]).sum()
