"""`hf`: a folder that Hugging Face's `transformers` opens by itself, with the model in plain torch and a model card."""

import json
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from brt_dist.errors import ConfigError
from brt_dist.export.formats.safetensors import Safetensors

if TYPE_CHECKING:
    from brt_dist.config.schema import ModelConfig
    from brt_dist.export.weights import Weights

_CODE = ("configuration_brt.py", "modeling_brt.py")
_AUTO = {
    "AutoConfig": "configuration_brt.BlockRecurrentConfig",
    "AutoModelForCausalLM": "modeling_brt.BlockRecurrentForCausalLM",
}
_MIXERS, _FFNS = ("window", "recurrent"), ("relu",)


class HuggingFace(Safetensors):
    about = "a folder for transformers (AutoModelForCausalLM, trust_remote_code), with a model card"

    @classmethod
    def texts(cls, weights: "Weights") -> dict[str, str]:
        from brt_dist.export.card import model_card
        from brt_dist.export.hf_tokenizer import tokenizer_files

        refuse_unknown_kinds(weights.model)
        code = files("brt_dist.export.huggingface")
        texts = {name: (code / name).read_text(encoding="utf-8") for name in _CODE}
        texts["generation_config.json"] = json.dumps({"do_sample": True, "use_cache": True}) + "\n"
        texts |= tokenizer_files(weights.tokenizer)
        return super().texts(weights) | texts | {"README.md": model_card(weights)}

    @classmethod
    def facts(cls) -> dict[str, Any]:
        return {"auto_map": _AUTO, "architectures": ["BlockRecurrentForCausalLM"]}


def refuse_unknown_kinds(model: "ModelConfig") -> None:
    """Refuse what the exported code cannot compute.

    Raises:
        ConfigError: names the kind, and another format.
    """
    if model.objective != "causal":
        raise ConfigError(f"model.objective={model.objective}: not in the exported code; nearest: --to safetensors")
    if model.repeat > 1:
        raise ConfigError(f"model.repeat={model.repeat}: not in the exported code; nearest: --to safetensors")
    for key, half in model.halves():
        known = _MIXERS if key.startswith("model.mixers") else _FFNS
        if half.kind not in known:
            raise ConfigError(
                f"{key}: the exported code for transformers has no kind {half.kind}, only {', '.join(known)}; "
                "nearest: --to safetensors"
            )
        if (qkv := getattr(half, "qkv", "dense")) != "dense":
            raise ConfigError(f"{key}.qkv={qkv}: not in the exported code; nearest: --to safetensors")
