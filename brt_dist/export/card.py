"""The README.md of an exported model."""

import math

from brt_dist.config.halves import assigned, listed
from brt_dist.config.schema import ModelConfig
from brt_dist.export.weights import Weights

_LOADER = """```python
import torch
from brt_dist.export.load import load_model
from brt_dist.model.model import full_logits
from brt_dist.parallel.layout import single_process

with single_process():
    model = load_model("FOLDER")
    window = model.config.window
    tokens = torch.zeros(1, window, dtype=torch.long)  # ids of tokenizer.json; a multiple of the window
    starts = torch.tensor([[True]])                    # (1, blocks): this block begins a document
    memory = model.blank_memory(1)                     # hand the returned memory to the next segment
    with torch.no_grad():
        logits, memory = model(tokens, memory, starts)
    print(full_logits(logits, model.config.vocab_size).shape)
```"""


def _layers(model: ModelConfig, key: str) -> str:
    _, group, name = key.split(".")
    return listed(index for index, taken in enumerate(assigned(getattr(model, group), model.layers)) if taken == name)


def model_card(weights: Weights) -> str:
    """Markdown with the network, what it was trained on, how good it was, and how it is loaded."""
    model, facts = weights.model, weights.facts
    parameters = sum(math.prod(shape) for shape in weights.shapes.values())
    halves = [
        (key.removeprefix("model."), f"{half.kind} ({half.summary(model)}), layers {_layers(model, key)}")
        for key, half in model.halves()
    ]
    rows = [
        ("parameters", f"{parameters:,}"),
        ("layers, width, heads", f"{model.layers}, {model.width}, {model.heads} of {model.head_dim}"),
        *halves,
        ("window", f"{model.window} tokens"),
        ("vocabulary", f"{model.vocab_size}"),
    ]
    rows += [(name, f"{facts[name]:,}") for name in ("step", "tokens") if isinstance(facts.get(name), int)]
    rows += [("dataset", str(facts["dataset"])[:12])] if facts.get("dataset") else []
    rows += [(f"bits/token, {name}", f"{value:.4f}") for name, value in facts.get("evaluations", {}).items()]
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    return (
        "---\nlibrary_name: brt_dist\npipeline_tag: text-generation\ntags: [block-recurrent-transformer]\n---\n\n"
        "# Block-Recurrent Transformer\n\n"
        "A [Block-Recurrent Transformer](https://arxiv.org/abs/2203.07852) trained with brt_dist. It reads a document "
        "segment by segment, and carries a recurrent state and a cache of keys and values from one to the next.\n\n"
        f"| | |\n|---|---|\n{table}\n\n## Loading it\n\n{_LOADER}\n"
    )
