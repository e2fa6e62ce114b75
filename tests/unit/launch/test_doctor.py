"""What the doctor concludes, from the reports of this machine with one thing changed; and its small services."""

import dataclasses
import socket
from pathlib import Path

import pytest

from launch.doctor import findings, node
from launch.doctor.findings import LAUNCHER, Finding

GIB = 1 << 30
GPU = {"name": "H100", "free": 79 * GIB, "total": 80 * GIB}


@pytest.fixture
def reports(tmp_path: Path) -> dict[str, node.NodeReport]:
    """Three nodes that are this machine."""
    (tmp_path / LAUNCHER).write_text(LAUNCHER)
    return {name: node.report(str(tmp_path), name) for name in ("a", "b", "c")}


def at_fault(found: list[Finding]) -> list[tuple[str, str | None]]:
    return [(finding.status, finding.node) for finding in found if finding.status != "ok"]


def test_alike_nodes_are_well(reports: dict[str, node.NodeReport], tmp_path: Path) -> None:
    unseen = {name: node.unseen(str(tmp_path), [*reports, LAUNCHER]) for name in reports}
    assert unseen == {"a": [], "b": [], "c": []}
    assert not at_fault(findings.versions(reports))
    assert not at_fault(findings.storage(reports, unseen, str(tmp_path)))
    assert not at_fault(findings.devices(reports, 2, wanted=False))
    assert not at_fault(findings.clocks({"a": (0.1, 0.1), "b": (2.5, 1.0)}))


def test_the_node_with_another_version_is_named(reports: dict[str, node.NodeReport]) -> None:
    other = {**reports["b"].versions, "torch": "1.0"}
    reports["b"] = dataclasses.replace(reports["b"], versions=other)
    (found,) = findings.versions(reports)
    assert (found.status, found.node) == ("failed", "b")
    assert found.message.startswith("torch is 1.0 here, and ")
    del other["torch"]
    (found,) = findings.versions(reports)
    assert found.message.startswith("torch is not installed here, and ")


def test_the_node_with_a_folder_of_its_own_is_named(reports: dict[str, node.NodeReport], tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    alone.mkdir()
    node.report(str(alone), "b")
    (tmp_path / "b").unlink()
    marks = [*reports, LAUNCHER]
    unseen = {name: node.unseen(str(alone if name == "b" else tmp_path), marks) for name in reports}
    assert unseen == {"a": ["b"], "b": ["a", "c", LAUNCHER], "c": ["b"]}
    assert at_fault(findings.storage(reports, unseen, str(tmp_path))) == [("failed", "b")]


def test_a_node_without_the_folder_is_named_and_no_other(reports: dict[str, node.NodeReport], tmp_path: Path) -> None:
    reports["c"] = node.report(str(tmp_path / "nowhere"), "c")
    (tmp_path / "c").unlink()
    unseen = {"a": ["c"], "b": ["c"], "c": ["a", "b", "c", LAUNCHER]}
    (found,) = findings.storage(reports, unseen, str(tmp_path))
    assert found.node == "c" and "No such file" in found.message


def test_gpus_that_are_missing_used_or_of_another_kind(reports: dict[str, node.NodeReport]) -> None:
    devices = {"a": (GPU, GPU), "b": (GPU,), "c": (GPU, {**GPU, "name": "A100", "free": 10 * GIB})}
    reports = {name: dataclasses.replace(reports[name], devices=devices[name]) for name in reports}
    assert at_fault(findings.devices(reports, 2, wanted=True)) == [
        ("failed", "b"),
        ("warning", "c"),
        ("warning", "c"),
    ]


def test_gpus_that_ray_does_not_offer_are_named_if_the_device_was_to_be_found(
    reports: dict[str, node.NodeReport],
) -> None:
    reports["b"] = dataclasses.replace(reports["b"], devices=(GPU, GPU))
    (found,) = findings.devices(reports, 2, wanted=False, is_auto=True)
    assert (found.status, found.node) == ("failed", "b") and "has 2 GPUs that Ray does not offer" in found.message
    assert not at_fault(findings.devices(reports, 2, wanted=False))


def test_clocks_and_room(reports: dict[str, node.NodeReport]) -> None:
    (found,) = findings.clocks({"a": (0.0, 0.1), "b": (-7.0, 0.2)})
    assert (found.node, found.message) == ("b", "its clock is 7.0 s behind")
    reports["a"] = dataclasses.replace(reports["a"], disk=100 << 20)
    assert at_fault(findings.room(reports)) == [("warning", "a")]


def test_an_address_of_its_own_can_be_listened_on_and_reached() -> None:
    port = node.listen("127.0.0.1", 8)
    assert node.reach("127.0.0.1", port) is None
    with pytest.raises(OSError):
        node.listen("192.0.2.77", 8)  # of nobody (RFC 5737)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        assert node.reach("127.0.0.1", closed.getsockname()[1]) is not None
