"""How torch computes on a kind of device, as far as it affects the memory of a step."""

from dataclasses import dataclass

from brt_dist.model.shapes import CACHED_TOKENS, TILE_TOKENS


@dataclass(frozen=True)
class Execution:
    """What differs between devices.

    Attributes:
        tile_tokens: tokens of a tile of logits.
        has_kernels: whether there are kernels for attention, norms and softmax, which need no temporaries.
        steps_in_place: whether torch's AdamW makes no temporaries.
        copies_collectives: whether all-gather and reduce-scatter work on a copy of the whole, as gloo's do.
        copies_beside: whether copies to and from host memory overlap the device's work, rather than happen at once.
    """

    tile_tokens: int = TILE_TOKENS
    has_kernels: bool = True
    steps_in_place: bool = False
    copies_collectives: bool = False
    copies_beside: bool = True

    def kernel(self, name: str, itemsize: int) -> str:
        """The attention kernel that runs where the config asks for `name`, for elements of `itemsize` bytes."""
        if name == "auto":
            name = "triton" if self.has_kernels else "blocked"
        return "plain" if name == "triton" and (itemsize > 2 or not self.has_kernels) else name


ON_GPU = Execution()
WITHOUT_KERNELS = Execution(has_kernels=False)  # only torch's own operations, on a device other than a CPU
ON_CPU = Execution(CACHED_TOKENS, has_kernels=False, steps_in_place=True, copies_collectives=True, copies_beside=False)
