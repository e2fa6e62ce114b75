"""The table of devices, and files with the same keys."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brt_dist.errors import ConfigError
from brt_dist.planning.devices import device_of_driver, device_spec, known_devices
from brt_dist.planning.hardware import peak_flops

FILE = """\
name: Ours
peak_flops: {bf16: 1e15, fp32: 1e14}
memory: 96e9
memory_rate: 4e12
link_rate: 4e11
network_rate: 5e10
host_rate: 6e10
host_memory: 1e12
devices_per_node: 4
"""


@pytest.mark.parametrize("name", [name for name in known_devices() if name != "cpu"])
def test_a_device_has_the_peak_that_mfu_is_measured_against(name: str) -> None:
    device = device_spec(name)
    assert device.source and 0 < device.room < device.memory
    if device.name.startswith("NVIDIA"):
        assert device.peak_flops.bf16 == peak_flops(device.name, "bf16")
        assert device.peak_flops.fp32 == peak_flops(device.name, "fp32")
        assert device_of_driver(device.name) == device


@pytest.mark.parametrize(
    ("ranks", "stride", "gather", "summed"),
    [
        (2, 1, 1.9, 2 * 1.9),
        (8, 1, 7 * 1.9, 2 * 7 * 1.9),
        (64, 1, 56 * 1.9 + 7 * 4, 2 * (7 * 1.9 + 3 * 4)),  # up and down a tree of eight nodes, with seven hops in each
        (8, 8, 7 * 4, 2 * 3 * 4),  # one device of each node
        (512, 1, 448 * 1.9 + 63 * 4, 2 * (7 * 1.9 + 6 * 4)),
    ],
)
def test_a_collective_takes_its_hops_and_what_it_takes_between_two(
    ranks: int, stride: int, gather: float, summed: float
) -> None:
    device = device_spec("h100")
    assert device.least_seconds(ranks, stride, "gather") == pytest.approx(1e-5 + gather * 1e-6)
    assert device.least_seconds(ranks, stride) == pytest.approx(1e-5 + summed * 1e-6)


@given(st.integers(2, 20_000), st.integers(0, 6), st.sampled_from(["sum", "gather"]), st.sampled_from([1, 4, 8, 72]))
def test_no_collective_is_shorter_with_more_hops(ranks: int, doubled: int, how: Any, devices_per_node: int) -> None:
    device = device_spec("h100").model_copy(update={"devices_per_node": devices_per_node})
    stride = 2**doubled
    seconds = device.least_seconds(ranks, stride, how)
    assert device.least_seconds(ranks + 1, stride, how) >= seconds
    assert device.model_copy(update={"network_hop_seconds": 8e-6}).least_seconds(ranks, stride, how) >= seconds


def test_ranks_share_the_memory_of_this_machine() -> None:
    one, four = device_spec("cpu"), device_spec("cpu", ranks_per_node=4)
    assert four.memory == one.memory / 4 and four.host_memory == one.host_memory


def test_a_file_has_the_same_keys(tmp_path: Path) -> None:
    path = tmp_path / "ours.yaml"
    path.write_text(FILE)
    device = device_spec(str(path))
    assert (device.name, device.memory, device.devices_per_node, device.price) == ("Ours", 96e9, 4, None)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (FILE.replace("memory: 96e9", "memory: -1"), "memory: Input should be greater than 0"),
        (FILE.replace("memory: 96e9\n", ""), "memory: Field required"),
        (FILE + "colour: green\n", "colour"),
        ("a: [", "cannot be read"),
        ("just text", "keys: name, peak_flops"),
    ],
)
def test_a_wrong_file_is_told(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said):
        device_spec(str(path))


def test_an_unknown_device_is_told() -> None:
    with pytest.raises(ConfigError, match="unknown device 'h1000'; known: a100, h100"):
        device_spec("h1000")
