"""How ZeRO reduces, splits and keeps what a run trains (`parallel.zero`); its stage is `parallel.zero_stage`."""

from typing import Literal

from pydantic import Field

from brt_dist.config.section import Section


class ZeroConfig(Section):
    """ZeRO, apart from its stage."""

    reduce_dtype: Literal["fp32", "bf16"] = Field(
        "fp32",
        description="type in which gradients are summed over data parallel ranks; bf16: half the traffic, and an error "
        "that grows with the ranks (simulated: 0.4 % at 8, 0.9 % at 64, 2 to 8 % at 512)",
    )
