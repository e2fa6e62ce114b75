"""`hf`: the folder of safetensors as Hugging Face users expect it, with a model card."""

from typing import TYPE_CHECKING

from brt_dist.export.formats.safetensors import Safetensors

if TYPE_CHECKING:
    from brt_dist.export.weights import Weights


class HuggingFace(Safetensors):
    about = "the same with a model card instead of config.yaml, as Hugging Face users expect it"

    @classmethod
    def texts(cls, weights: "Weights") -> dict[str, str]:
        from brt_dist.export.card import model_card

        return {"README.md": model_card(weights)}
