"""A tensor parallel rank's part of a micro-batch: the sizes that activation formulas use."""

from dataclasses import dataclass


@dataclass(frozen=True)
class LocalSegment:
    """The segments of a micro-batch on one rank.

    Attributes:
        streams: of the micro-batch [b].
        segment: tokens of each [N].
        window: tokens of a block [W].
        tensor: tensor parallel size [tp].
        sequence_parallel: whether the rank has N/tp of the tokens between tensor parallel regions.
        itemsize: bytes of an element of the activations.
        kernel: that computes attention: "triton", "blocked" or "plain".
        remakes: whether the backward pass makes norms and layouts again; not what it reruns anyway (recompute).
    """

    streams: int
    segment: int
    window: int
    tensor: int = 1
    sequence_parallel: bool = False
    itemsize: int = 2
    kernel: str = "blocked"
    remakes: bool = True

    @property
    def tokens(self) -> int:
        """Tokens within a tensor parallel region."""
        return self.streams * self.segment

    @property
    def own_tokens(self) -> int:
        """Tokens between tensor parallel regions."""
        return self.tokens // self.tensor if self.sequence_parallel else self.tokens

    @property
    def blocks(self) -> int:
        """Blocks of all streams."""
        return self.tokens // self.window

    def hidden(self, width: int) -> int:
        """Bytes of hidden states between regions."""
        return self.own_tokens * width * self.itemsize

    def normed(self, width: int, dropout: float = 0.0) -> int:
        """Bytes that a norm of hidden states and the linear map after it keep: the input, and one number per token.

        The backward pass makes the norm again, but not with dropout between the two: its mask and result are kept.
        """
        result = self.hidden(width) if dropout else self.made(self.hidden(width))
        return self.hidden(width) + 4 * self.own_tokens + result + self.mask(width, dropout)

    def made(self, size: int) -> int:
        """Bytes kept of what a backward pass can make again."""
        return 0 if self.remakes else size

    def made_again(self, size: int) -> int:
        """Bytes of what the backward pass makes again."""
        return size if self.remakes else 0

    def entered(self, width: int) -> int:
        """The same if the rank enters a region first, so that the maps keep all tokens."""
        return self.hidden(width) + 4 * self.own_tokens + self.tokens * width * self.itemsize

    def gathered(self, width: int) -> int:
        """Bytes of the hidden states of all tokens, if a rank has only a part of them between regions; else 0."""
        return self.tokens * width * self.itemsize if self.sequence_parallel else 0

    def of_norm(self, width: int) -> int:
        """Bytes of the backward pass of a norm of hidden states, without a kernel.

        Two products of its input and the gradient, in float32, and float32 copies of both if they are not.
        """
        return 0 if self.kernel == "triton" else 4 * self.own_tokens * width * (2 if self.itemsize == 4 else 4)

    def softmax(self, logits: int) -> int:
        """Bytes of the backward pass of attention that keeps no logits: logits, probabilities and both gradients.

        They are in float32, the gradients of logits also in the model's type.  A kernel has them in registers.
        """
        return 0 if self.kernel == "triton" else logits * (4 * 4 + (self.itemsize if self.itemsize < 4 else 0))

    def widened(self, width: int) -> int:
        """Bytes of a float32 copy of hidden states; 0 if they already are float32."""
        return 4 * self.own_tokens * width if self.itemsize < 4 else 0

    def mask(self, width: int, rate: float) -> int:
        """Bytes of a dropout mask of hidden states."""
        return self.own_tokens * width if rate else 0
