"""Writes the folders here with Hugging Face's transformers: tiny models with random weights, and what they compute.

PYTHONPATH=.venv/transformers python tests/data/gpt/make.py
"""

from pathlib import Path

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

HERE = Path(__file__).parent
TOKENS = torch.arange(12).view(1, 12) * 3 % 48


def randomised(model):
    """Randomizes also norms and biases, which begin as ones and zeros; rounds to bfloat16, as they are saved."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            drawn = torch.randn_like(weight) * (0.3 if weight.dim() > 1 else 0.1) + (
                name.endswith("norm.weight") or ".ln_" in name
            )
            weight.copy_(drawn.bfloat16())
    return model.eval()


def hidden():
    return torch.randn(5, 1, 16, generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def llama():
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        max_position_embeddings=64,
        rms_norm_eps=1e-6,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = randomised(LlamaForCausalLM(config))
    model.bfloat16().save_pretrained(HERE / "llama", max_shard_size="8KB")
    model.float()
    layer, x = model.model.layers[0], hidden()
    normed = layer.input_layernorm(x)
    found = {"x": x, "merged": layer.self_attn.o_proj(x), "ffn": layer.mlp(layer.post_attention_layernorm(x))}
    for name in ("q", "k", "v"):
        found[name] = getattr(layer.self_attn, f"{name}_proj")(normed)
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.zero_()  # what remains is what ours computes too
    return found | {"logits": model(TOKENS).logits}


@torch.no_grad()
def gpt2():
    config = GPT2Config(vocab_size=256, n_embd=16, n_layer=2, n_head=4, n_positions=32, bos_token_id=1, eos_token_id=2)
    model = randomised(GPT2LMHeadModel(config))
    model.save_pretrained(HERE / "gpt2")
    layer, x = model.transformer.h[0], hidden()
    found = {"x": x, "ffn": layer.mlp(layer.ln_2(x))}
    layer.attn.c_proj.bias.zero_()
    found["merged"] = layer.attn.c_proj(x)
    layer.ln_1.bias.zero_()
    layer.attn.c_attn.bias.zero_()
    found |= dict(zip("qkv", layer.attn.c_attn(layer.ln_1(x)).chunk(3, -1), strict=True))
    return found


for name, make in (("llama", llama), ("gpt2", gpt2)):
    values = {key: value.numpy() for key, value in make().items()}
    np.savez_compressed(HERE / name / "expected.npz", **values)
    (HERE / name / "generation_config.json").unlink(missing_ok=True)
