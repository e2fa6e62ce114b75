"""GPUs and the links between them, as the roofline sees them."""

from dataclasses import dataclass

from brt_dist.errors import ConfigError
from brt_dist.planning.hardware import peak_flops


@dataclass(frozen=True)
class Machine:
    """Nodes of GPUs that are all alike.

    Attributes:
        peak: floating point operations a second of a GPU, in bf16.
        memory: bytes a second to and from its memory.
        inside: bytes a second that a GPU sends to another of its node.
        network: bytes a second that a GPU sends to another node.
        efficiency: share of `peak` that products of matrices reach.
        node: GPUs of a node.
        link_efficiency: share of `inside` and `network` that collectives and transfers reach.
        latency: seconds of a message, however short.
    """

    peak: float
    memory: float
    inside: float
    network: float
    efficiency: float
    node: int = 8
    link_efficiency: float = 0.8
    latency: float = 10e-6

    def reach(self, ranks: int, stride: int = 1) -> float:
        """Bytes a second on a ring of `ranks` GPUs, each `stride` after the one before, that all GPUs form at once.

        Where a ring crosses from node to node, it has the network of all its GPUs of a node.
        """
        if ranks * stride <= self.node:
            return self.inside * self.link_efficiency
        of_node = max(self.node // stride, 1)
        return min(self.inside, self.network * of_node) * self.link_efficiency


_GB = 1e9
# Memory, NVLink in one direction, and the network of the maker's own nodes (DGX): from NVIDIA's data sheets.  Then the
# share of the peak, fitted on published runs (python -m benchmarks.published); that of the last two is the H100's.
_MACHINES = {
    "a100": ("NVIDIA A100", 2039 * _GB, 300 * _GB, 25 * _GB, 0.67),
    "h100": ("NVIDIA H100", 3350 * _GB, 450 * _GB, 50 * _GB, 0.575),
    "h200": ("NVIDIA H200", 4800 * _GB, 450 * _GB, 50 * _GB, 0.575),
    "b200": ("NVIDIA B200", 8000 * _GB, 900 * _GB, 50 * _GB, 0.575),
}
MACHINES = tuple(_MACHINES)


def machine(name: str, efficiency: float | None = None) -> Machine:
    """A machine by its short name.

    Args:
        efficiency: share of the peak that products of matrices reach; None: what was fitted on published runs.

    Raises:
        ConfigError: no such machine is known.
    """
    if name not in _MACHINES:
        raise ConfigError(f"device {name} is not known; nearest: {', '.join(MACHINES)}")
    full, memory, inside, network, fitted = _MACHINES[name]
    peak = peak_flops(full, "bf16")
    assert peak is not None
    return Machine(peak, memory, inside, network, fitted if efficiency is None else efficiency)
