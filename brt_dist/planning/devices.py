"""The devices that a plan knows: a table of data sheets (devices.yaml), this machine's CPUs, or a user's file."""

import os
from functools import cache
from itertools import pairwise
from math import log
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, ValidationError

from brt_dist.config.section import Section
from brt_dist.errors import ConfigError
from brt_dist.planning.execution import ON_CPU, ON_GPU, Execution
from brt_dist.reading import read_text

TABLE = Path(__file__).with_name("devices.yaml")
FORMAT = 1  # of a calibration
_LARGEST = 1 << 20  # bytes of a device file
_SHARED = ("memory", "memory_rate", "host_rate", "link_rate", "network_rate")  # by the ranks of a machine's CPUs
_CORE_FLOPS = 50e9  # of a core with 256-bit vectors at 3 GHz, about half of its peak


class Peaks(Section):
    """Dense floating point operations a second of matrix products, without sparsity."""

    bf16: PositiveFloat
    fp32: PositiveFloat


class DeviceSpec(Section):
    """A kind of device, and the node that it is in.  Rates are bytes a second, in one direction."""

    name: str = Field(description="as the driver gives it")
    peak_flops: Peaks = Field(description="peak FLOP/s by precision: {bf16: ..., fp32: ...}")
    memory: PositiveFloat = Field(description="bytes of memory of a device")
    memory_rate: PositiveFloat = Field(description="to and from its memory")
    link_rate: PositiveFloat = Field(description="between devices of a node")
    network_rate: PositiveFloat = Field(description="of the network of a node, divided by the devices of the node")
    host_rate: PositiveFloat = Field(description="between device and host memory")
    host_memory: PositiveFloat = Field(description="bytes of host memory of a node")
    devices_per_node: PositiveInt = Field(description="devices of a node")
    price: NonNegativeFloat | None = Field(None, description="of one device for an hour, in dollars; unset: unknown")
    matmul_efficiency: PositiveFloat = Field(0.8, le=1.0, description="share of the peak that matrix products reach")
    narrow_products: dict[PositiveInt, PositiveFloat] = Field(
        {}, description="share of that for products whose smallest side is KEY; interpolated, 1 if empty"
    )
    attention_efficiency: PositiveFloat = Field(
        0.08, le=1.0, description="share of the peak that attention reaches, forward and backward, on what tokens see"
    )
    attention_forward: PositiveFloat = Field(0.17, lt=1.0, description="share of attention's time in the forward")
    activation_passes: NonNegativeFloat = Field(
        12.0, description="how often a step reads or writes each byte of activations, at the rate of its memory"
    )
    mixer_passes: dict[str, NonNegativeFloat] = Field(
        {}, description="the same of layers with this kind of mixer, instead of activation_passes"
    )
    gradient_passes: NonNegativeFloat = Field(
        1.0, description="the same of gradients, for each time that the plan counts to look at, sum and pack them"
    )
    logits_passes: NonNegativeFloat = Field(9.0, description="the same of the logits in float32")
    update_passes: PositiveFloat = Field(
        1.0, description="how often an update reads and writes weights, optimizer state and gradients"
    )
    link_efficiency: PositiveFloat = Field(0.8, le=1.0, description="share of link and network rates that is reached")
    link_shares: dict[Literal["gather", "scatter", "send"], PositiveFloat] = Field(
        {}, description="what gathers, reductions that leave parts, and transfers reach of what sums reach; unset: all"
    )
    tensor_share: PositiveFloat = Field(
        1.0, description="what sums and gathers between products reach of that, where ranks also wait for each other"
    )
    link_seconds: NonNegativeFloat = Field(
        1e-5, description="of a collective or transfer, however short and however few devices it has"
    )
    hop_seconds: NonNegativeFloat = Field(
        1.9e-6, description="that a collective takes longer for each device of a node that its data passes"
    )
    network_hop_seconds: NonNegativeFloat = Field(4e-6, description="the same for each node")
    launch_seconds: NonNegativeFloat = Field(2.5e-5, description="of the host for an operation, with Python and views")
    disk_rate: PositiveFloat | None = Field(None, description="that a node writes to its disk; unset: unknown")
    correction: PositiveFloat = Field(
        1.0, description="of compute, from runs: what they took over what was planned for them"
    )
    is_asynchronous: bool = Field(True, description="whether the device computes while the host prepares what follows")
    reserved: NonNegativeFloat = Field(
        4e9, description="bytes of a device that libraries, communication buffers and fragmentation take"
    )
    source: str = Field("", description="where these numbers are from")
    is_timed: bool = Field(True, description="whether times mean something: its rates are from data sheets or measured")

    @property
    def room(self) -> float:
        """Bytes of a device that a plan may use."""
        return self.memory - self.reserved

    def rate_of_ring(self, ranks: int, stride: int = 1) -> float:
        """Bytes a second that a rank can send in a ring of `ranks` devices, each `stride` after the one before.

        All devices are in such rings at once.  Where a ring leaves a node, it has the network of all its devices there:
        with 8 devices per node, one device's for a stride of 8, and all devices' for a stride of 1.
        """
        if ranks * stride <= self.devices_per_node:
            return self.link_rate
        return min(self.link_rate, self.network_rate * max(self.devices_per_node // stride, 1))

    def least_seconds(self, ranks: int, stride: int = 1, how: Literal["sum", "gather"] = "sum") -> float:
        """Least seconds of a collective of `ranks` devices, each `stride` after the one before.

        As NCCL counts hops (src/graph/tuning.cc): an all-gather or a reduce-scatter passes its data from device to
        device, once around; an all-reduce does so twice, or goes up a tree of nodes and down again, whichever takes
        less.
        """
        in_node = min(max(self.devices_per_node // stride, 1), ranks)
        nodes = -(-ranks // in_node)
        ring = (ranks - nodes) * self.hop_seconds + (nodes - 1) * self.network_hop_seconds
        tree = (in_node - 1) * self.hop_seconds + (nodes - 1).bit_length() * self.network_hop_seconds
        return self.link_seconds + (ring if how == "gather" else 2 * min(ring, tree))

    @property
    def execution(self) -> Execution:
        """How torch computes on it; only CPUs do not work in parallel with the host."""
        return ON_GPU if self.is_asynchronous else ON_CPU

    def share_of_products(self, side: float) -> float:
        """Share of the peak that products with smallest side `side` reach, interpolated by its logarithm."""
        known = sorted(self.narrow_products.items())
        if not known:
            return self.matmul_efficiency
        for (low, first), (high, second) in pairwise(known):
            if low <= side <= high:
                return self.matmul_efficiency * (first + (second - first) * log(side / low) / log(high / low))
        return self.matmul_efficiency * known[0 if side < known[0][0] else -1][1]


class Calibration(Section):
    """Measurements of a machine: the device, for some numbers of ranks at work at once."""

    format: Literal[1] = Field(description="of this file")
    measured: str = Field(description="when, on what")
    disturbed: dict[PositiveInt, str] = Field(
        {}, description="what says that something else ran meanwhile, by ranks of the machine; empty: nothing did"
    )
    ranks: dict[PositiveInt, DeviceSpec] = Field(min_length=1, description="the device, by ranks of the machine")

    def of(self, ranks: int) -> DeviceSpec:
        """The device of each of `ranks` ranks: as measured with that many, or else with the next fewer, or the fewest.

        Ranks beyond the measured number share the same CPUs.
        """
        nearest = max((count for count in self.ranks if count <= ranks), default=min(self.ranks))
        found = self.ranks[nearest]
        if nearest >= ranks or found.is_asynchronous:
            return found
        share, peaks = nearest / ranks, found.peak_flops
        shared = {name: getattr(found, name) * share for name in _SHARED}
        peaks = Peaks(bf16=peaks.bf16 * share, fp32=peaks.fp32 * share)
        return found.model_copy(update={**shared, "peak_flops": peaks, "devices_per_node": ranks})


def known_devices() -> tuple[str, ...]:
    """Names that :func:`device_spec` knows."""
    return (*_table(), "cpu")


def device_spec(name: str, ranks_per_node: int = 1) -> DeviceSpec:
    """The device of that name, or of a YAML file with the keys of :class:`DeviceSpec`.

    Args:
        name: one of `known_devices`, or a file.  "cpu" is this machine.
        ranks_per_node: ranks that share this machine; only "cpu" depends on it.

    Raises:
        ConfigError: there is no such device or file, or the file does not fit; says what is wrong.
    """
    if name in _table():
        return _table()[name]
    if name == "cpu":
        return this_machine(ranks_per_node)
    path = Path(name)
    if not path.is_file():
        raise ConfigError(
            f"unknown device {name!r}; known: {', '.join(known_devices())}, or a YAML file with the same keys"
        )
    found = read_device(path)
    return found.of(ranks_per_node) if isinstance(found, Calibration) else found


def read_device(path: Path) -> "DeviceSpec | Calibration":
    """A file with the keys of a device, or one that `brt plan --calibrate` wrote.

    Raises:
        ConfigError: it cannot be read, or does not fit; says what is wrong.
    """
    try:
        given = _numbers(yaml.safe_load(read_text(path, _LARGEST)))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise ConfigError(
            f"device file {path}: cannot be read ({(str(error) or 'too deep').splitlines()[0]})"
        ) from None
    kind: type[Calibration] | type[DeviceSpec] = DeviceSpec
    if isinstance(given, dict) and "format" in given:
        kind = Calibration
        if given["format"] != FORMAT:
            raise ConfigError(
                f"device file {path}: it has format {given['format']!r}, and this version reads {FORMAT}; "
                "nearest: brt plan --calibrate writes a new one"
            )
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        found = "; ".join(f"{'.'.join(map(str, one['loc'])) or 'the file'}: {one['msg']}" for one in error.errors())
        raise ConfigError(f"device file {path}: {found}; keys: {', '.join(kind.model_fields)}") from None


def device_of_driver(name: str, ranks_per_node: int = 1) -> DeviceSpec | None:
    """The device with the name that the driver gives; None if the table does not have it."""
    if name == "cpu":
        return this_machine(ranks_per_node)
    return next((spec for spec in _table().values() if name == spec.name or name.startswith(f"{spec.name} ")), None)


def this_machine(ranks: int) -> DeviceSpec:
    """A rank's share of the CPUs of this machine.  Rates are assumptions; the memory is that of the machine."""
    cores, memory = os.cpu_count() or 1, float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    flops = _CORE_FLOPS * max(cores / ranks, 1)
    return DeviceSpec(
        name="cpu",
        peak_flops=Peaks(bf16=flops, fp32=flops),
        memory=memory / ranks,
        memory_rate=20e9 / ranks,
        link_rate=5e9 / ranks,
        network_rate=1e9 / ranks,
        host_rate=20e9 / ranks,
        host_memory=memory,
        devices_per_node=ranks,
        matmul_efficiency=1.0,
        attention_efficiency=0.5,
        launch_seconds=10e-6,
        hop_seconds=0.0,  # what is measured of all ranks of a machine has them
        network_hop_seconds=0.0,
        is_asynchronous=False,
        is_timed=False,
        reserved=min(0.6e9, memory / ranks / 2),
        source="this machine's memory and cores; rates are assumptions",
    )


@cache
def _table() -> dict[str, DeviceSpec]:
    found: dict[str, Any] = yaml.safe_load(TABLE.read_text(encoding="utf-8"))
    return {name: DeviceSpec.model_validate(_numbers(entry)) for name, entry in found.items()}


def _numbers(given: Any) -> Any:
    """YAML reads 80e9 as text, and people write it."""
    if isinstance(given, dict):
        return {key: _numbers(value) for key, value in given.items()}
    if isinstance(given, str):
        try:
            return float(given)
        except ValueError:
            return given
    return given
