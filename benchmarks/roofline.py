"""Seconds of a pipeline stage from what it computes and moves, for other people's software.

FLOPs over peak, bytes over bandwidth.  Kernels run one after the other, so matrix products, limited by the peak, and
everything else, limited by memory, are added up.
"""

from dataclasses import dataclass

from brt_dist.planning.devices import DeviceSpec
from brt_dist.planning.simulator.seconds import StageSeconds


@dataclass(frozen=True)
class StageWork:
    """What one rank of a stage does.

    Attributes:
        flops: of a forward of a micro-batch; a backward has twice as many.
        recomputed: FLOPs of the forward that a backward repeats.
        traffic: bytes that a forward pass reads and writes outside of matrix products; a backward pass twice as many.
        traffic_again: bytes of `traffic` that a backward repeats.
        summed: bytes that a forward sums over the tensor parallel ranks.
        summed_back: the same for a backward.
        sent: bytes to the next stage, for a micro-batch.
        reduced: bytes of gradients that a rank sends to the data parallel ranks, in a step.
        late: of those, bytes that are sent when backward is done.
        gathered: bytes of updated weights that a rank sends to the data parallel ranks, in a step.
        updated: bytes that the optimizer reads and writes, in a step.
        tied: bytes of the gradient that the first and the last stage add up.
    """

    flops: float
    recomputed: float
    traffic: float
    traffic_again: float = 0.0
    summed: float = 0.0
    summed_back: float = 0.0
    sent: float = 0.0
    reduced: float = 0.0
    late: float = 0.0
    gathered: float = 0.0
    updated: float = 0.0
    tied: float = 0.0


@dataclass(frozen=True)
class Axes:
    """Sizes of a layout; ranks are numbered with tensor parallel fastest, then data, then pipeline."""

    tensor: int
    data: int
    pipeline: int

    @property
    def gpus(self) -> int:
        return self.tensor * self.data * self.pipeline


def stage_seconds(work: StageWork, axes: Axes, device: DeviceSpec) -> StageSeconds:
    """How long a stage takes.

    A ring sums in two rounds, in each of which a rank sends all but its own part.
    """
    peak = device.peak_flops.bf16 * device.matmul_efficiency
    rings = (axes.tensor, 1), (axes.data, axes.tensor)
    in_tensor, in_data = (device.rate_of_ring(*ring) * device.link_efficiency for ring in rings)
    ring = 2 * (axes.tensor - 1) / axes.tensor / in_tensor
    # the ranks of the next stage are on another node, unless all are on one
    link = device.link_rate if axes.gpus <= device.devices_per_node else device.network_rate
    link *= device.link_efficiency
    forward = work.flops / peak + work.traffic / device.memory_rate
    again = work.recomputed / peak + work.traffic_again / device.memory_rate
    backward = 2 * forward + again + work.summed_back * ring
    hidden = work.reduced - work.late
    return StageSeconds(
        forward=forward + work.summed * ring,
        backward=backward,
        send=work.sent / link if axes.pipeline > 1 else 0.0,
        reduce=work.late / in_data + max(hidden / in_data - backward, 0.0),
        update=work.updated / device.memory_rate + work.gathered / in_data,
        tied=work.tied / link,
    )
