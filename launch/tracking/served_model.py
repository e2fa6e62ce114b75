"""What a logged model runs: copied into it as code, so it imports nothing of this package.

It has no type hints, because MLflow would read a model's input types from them instead of from its signature.
"""

from mlflow.models import set_model
from mlflow.pyfunc import PythonModel


class BlockRecurrentText(PythonModel):
    """Continues texts: a column `prompt` in, a list of texts out."""

    def load_context(self, context):
        from transformers import AutoModelForCausalLM, AutoTokenizer

        folder = context.artifacts["model"]  # an export for transformers, with the model's code in it
        self._model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
        self._tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)

    def predict(self, context, model_input, params=None):
        """The continuation of each prompt; `params` are those of the model's signature."""
        import torch

        wanted = {"max_new_tokens": 100, "temperature": 1.0, "seed": 0, **(params or {})}
        sampled = wanted["temperature"] > 0
        torch.manual_seed(wanted["seed"])
        # MLflow makes a table of a request; {"inputs": {"prompt": [...]}} is one row of it with a list
        rows = model_input["prompt"]
        prompts = [one for row in rows for one in ([row] if isinstance(row, str) else row)]
        found = []
        for prompt in prompts:
            ids = self._tokenizer(prompt, return_tensors="pt").input_ids
            with torch.no_grad():
                new = self._model.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=wanted["max_new_tokens"],
                    do_sample=sampled,
                    **({"temperature": wanted["temperature"]} if sampled else {}),
                )
            found.append(self._tokenizer.decode(new[0, ids.shape[1] :]))
        return found


set_model(BlockRecurrentText())
