"""Configuration of a Block-Recurrent Transformer, exported by brt_dist."""

from transformers import PretrainedConfig


class BlockRecurrentConfig(PretrainedConfig):
    """The network (arXiv 2203.07852).

    Attributes:
        layers, width, heads, head_dim, vocab_size: sizes.
        window: tokens that a token sees before it, and tokens of a block.
        mixers, ffns: the kinds of layers: by name, settings with `kind` and the `layers` that use it (null: all that no
            other names; negative numbers count from the end).
        feedback: whether all layers attend to the state of the last recurrent layer.
        logit_scale: logits are divided by the square root of this size, "width" or "vocabulary".
    """

    model_type = "block_recurrent_transformer"
    attribute_map = {  # noqa: RUF012 - transformers' own form
        "hidden_size": "width",
        "num_hidden_layers": "layers",
        "num_attention_heads": "heads",
    }

    def __init__(
        self,
        layers=12,
        width=1024,
        heads=8,
        head_dim=128,
        vocab_size=32000,
        window=512,
        mixers=None,
        ffns=None,
        feedback=False,
        logit_scale="width",
        **others,
    ):
        self.layers, self.width, self.heads, self.head_dim = layers, width, heads, head_dim
        self.vocab_size, self.window = vocab_size, window
        self.mixers = mixers or {"window": {"kind": "window", "layers": None}}
        self.ffns = ffns or {"relu": {"kind": "relu", "layers": None, "width": 4 * width}}
        self.feedback, self.logit_scale = feedback, logit_scale
        others.setdefault("tie_word_embeddings", False)  # one table, used twice: nothing to tie
        super().__init__(**others)

    def mixer_of(self, index):
        """Settings of the mixer of a layer."""
        return self._of(self.mixers, index)

    def ffn_of(self, index):
        """Settings of the FFN of a layer."""
        return self._of(self.ffns, index)

    def _of(self, settings, index):
        for one in settings.values():
            if one["layers"] is not None and index in [layer % self.layers for layer in one["layers"]]:
                return one
        return next(one for one in settings.values() if one["layers"] is None)
