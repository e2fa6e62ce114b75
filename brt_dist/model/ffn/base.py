"""The interface of FFNs: the half of a layer that works on each token separately.

The module that `build` makes is pure, `ffn(x, dropout) -> y`: x (N, b, D) hidden states, under sequence parallel this
rank's tokens (N/tp, b, D); y has the same shape and is added to x.  dropout: keyed masks, None outside training.
"""

from brt_dist.config.halves import Half


class FFN(Half):
    """A kind of FFN."""
