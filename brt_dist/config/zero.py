"""How ZeRO reduces, splits and stores what a run trains (`parallel.zero`); its stage is `parallel.zero_stage`."""

from typing import Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator, model_validator

from brt_dist.config.older import drop_zero_keys
from brt_dist.config.section import Section

BUCKET = 500_000_000  # DeepSpeed's default
SCATTERED_BUCKET = 50_000_000  # small, so that little is left to reduce when the backward pass ends


class ZeroConfig(Section):
    """ZeRO, apart from its stage."""

    reduce_dtype: Literal["fp32", "bf16"] = Field(
        "fp32",
        description="type in which gradients are summed over data parallel ranks; bf16: half the traffic, and an error "
        "that grows with the number of ranks (simulated: 0.4 % at 8, 0.9 % at 64, 2 to 8 % at 512)",
    )
    reduce_bucket: PositiveInt | None = Field(
        None,
        description="largest number of gradient elements reduced together; unset: 50 million for ZeRO-1 in bf16, else "
        "500 million",
    )
    gather_bucket: PositiveInt = Field(
        BUCKET, multiple_of=2, description="ZeRO-1 and ZeRO-2: largest number of weight elements gathered together"
    )
    reduce_scatter: bool = Field(
        True, description="give each rank only the sums that it updates with (reduce-scatter); false: all of them"
    )
    overlap: bool | None = Field(
        None,
        description="reduce gradients while the backward pass computes more; unset: on for ZeRO-1 in bf16 and for "
        "ZeRO-3. With ZeRO-2, DeepSpeed then waits for the device at each reduction",
    )
    contiguous_gradients: bool = Field(
        True, description="copy gradients into one buffer as they are computed, which keeps memory from fragmenting"
    )
    offload_optimizer: Literal["none", "cpu"] = Field(
        "none", description="where the optimizer's state and master weights are kept and updated; none: on the device"
    )
    offload_parameters: Literal["none", "cpu"] = Field(
        "none", description="ZeRO-3: where weights are kept while no layer uses them; none: on the device"
    )
    pin_memory: bool = Field(True, description="offload to page-locked host memory")
    weights_within: PositiveInt = Field(
        1,
        description="ZeRO-3: split a second copy of the weights over groups of this many ranks (hpZ), so that the "
        "backward pass gathers within a node; usual: the ranks of a node; 1: no copy",
    )
    prefetch_bucket: NonNegativeInt = Field(
        50_000_000, description="ZeRO-3: largest number of weight elements gathered ahead of their use"
    )
    persistent_below: NonNegativeInt = Field(
        100_000, description="ZeRO-3: parameters with fewer elements stay whole on every rank"
    )
    most_live: NonNegativeInt = Field(
        1_000_000_000, description="ZeRO-3: gather no weights ahead while this many elements are held whole"
    )
    reuse_distance: NonNegativeInt = Field(
        1_000_000_000,
        description="ZeRO-3: weights that are used again within this many elements stay whole in between",
    )

    @model_validator(mode="before")
    @classmethod
    def _spell(cls, given: Any) -> Any:
        return drop_zero_keys(given) if isinstance(given, dict) else given

    @field_validator("offload_optimizer", "offload_parameters", mode="before")
    @classmethod
    def _not_to_disk(cls, place: Any) -> Any:
        if place == "nvme":
            raise ValueError("what DeepSpeed has swapped to disk can be neither initialized nor saved; nearest: cpu")
        return place
