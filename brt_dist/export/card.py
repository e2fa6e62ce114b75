"""The README.md of an exported model."""

import math

from brt_dist.config.halves import assigned, listed
from brt_dist.config.schema import ModelConfig
from brt_dist.export.weights import Weights

_LOADER = """With `transformers`, and nothing of brt_dist:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("FOLDER", trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained("FOLDER", trust_remote_code=True)
prompt = tokenizer("It was a dark", return_tensors="pt")
print(tokenizer.decode(model.generate(**prompt, max_new_tokens=50)[0]))
```

With brt_dist:

```python
import brt_dist

with brt_dist.load("FOLDER") as model:
    print(model.generate("It was a dark", tokens=50).text)
```"""


def _layers(model: ModelConfig, key: str) -> str:
    _, group, name = key.split(".")
    return listed(index for index, taken in enumerate(assigned(getattr(model, group), model.layers)) if taken == name)


def model_card(weights: Weights) -> str:
    """Markdown with the network, its training data, its quality, and how to load it."""
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
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags: [block-recurrent-transformer]\n---\n\n"
        "# Block-Recurrent Transformer\n\n"
        "A [Block-Recurrent Transformer](https://arxiv.org/abs/2203.07852) trained with brt_dist. It reads a document "
        "segment by segment, and carries a recurrent state and a cache of keys and values from one to the next.\n\n"
        f"| | |\n|---|---|\n{table}\n\n{_training(weights)}## Loading it\n\n{_LOADER}\n"
    )


def _training(weights: Weights) -> str:
    """How it was trained, as far as that is known."""
    found = ""
    if points := weights.curve():
        rows = [f"| {p.step:,} | {_bits(p.training)} | {_bits(p.held_out)} |" for p in points]
        found = "Bits/token while it was trained:\n\n| step | training text | held-out text |\n|---|---|---|\n"
        found += "\n".join(rows) + "\n\n"
    if weights.config is not None:
        found += "Every setting of the run is in config.yaml.\n\n"
    return f"## Training\n\n{found}" if found else ""


def _bits(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
