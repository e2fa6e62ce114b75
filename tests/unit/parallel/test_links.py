"""Links between ranks: connections are made on first use, strangers are refused, a lost rank is reported."""

import socket
import threading
from collections.abc import Iterator

import psutil
import pytest

from brt_dist.parallel.addresses import address_of_node, let_gloo_follow
from brt_dist.parallel.links import Address, LinkError, Links

RANKS = 5


@pytest.fixture
def links() -> Iterator[list[Links]]:
    found = [Links(rank, 20.0, "127.0.0.1") for rank in range(RANKS)]
    for one in found:
        one.meet({rank: other.address for rank, other in enumerate(found)})
    yield found
    for one in found:
        one.close()


def test_bytes_and_texts_arrive_in_order_and_connections_are_those_used(links: list[Links]) -> None:
    assert [one.connections for one in links] == [0] * RANKS
    text = "schön" * 100_000  # more than the buffers of a socket
    sender = threading.Thread(target=lambda: (links[3].send(b"abc", 0), links[3].send_text(text, 0)))
    sender.start()
    found = bytearray(3)
    links[0].receive_into(memoryview(found), 3)
    assert bytes(found) == b"abc" and links[0].receive_text(3) == text
    sender.join()
    links[0].send_text("back", 3)
    assert links[3].receive_text(0) == "back"
    assert [one.connections for one in links] == [2, 0, 0, 2, 0]


def test_who_does_not_know_the_secret_is_refused(links: list[Links]) -> None:
    right = links[0].address
    stranger = Links(4, 20.0, "127.0.0.1")
    stranger.meet({0: Address(right.host, right.port, bytes(len(right.secret)))})
    stranger.send(b"x", 0)
    with socket.create_connection((right.host, right.port)) as silent:
        silent.sendall(b"GET / HTTP/1.0\r\n\r\n.....")
        links[1].send_text("hello", 0)
        assert links[0].receive_text(1) == "hello"
    assert links[0].connections == 1
    stranger.close()


def test_a_rank_that_is_gone_or_silent_is_named(links: list[Links]) -> None:
    links[2].send(b"x", 0)
    links[0].receive_into(memoryview(bytearray(1)), 2)
    links[2].close()
    with pytest.raises(LinkError, match="cannot receive from rank 2: connection closed"):
        links[0].receive_into(memoryview(bytearray(1)), 2)
    with pytest.raises(LinkError, match="cannot send to rank 2"):
        links[1].send(b"x", 2)
    impatient = Links(0, 0.05, "127.0.0.1")
    with pytest.raises(LinkError, match="rank 1 sent nothing for 0 s"):
        impatient.receive_into(memoryview(bytearray(1)), 1)
    impatient.close()


def test_the_address_is_that_of_the_interface_or_the_one_towards_rank_0(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MASTER_ADDR", "GLOO_SOCKET_IFNAME"):
        monkeypatch.delenv(name, raising=False)
    assert address_of_node() == "127.0.0.1"
    let_gloo_follow()
    import os

    assert "GLOO_SOCKET_IFNAME" not in os.environ
    for interface, entries in psutil.net_if_addrs().items():
        hosts = [entry.address for entry in entries if entry.family == socket.AF_INET]
        if not hosts or interface == "lo":
            continue
        monkeypatch.setenv("MASTER_ADDR", hosts[0])  # rank 0 is here
        monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
        assert address_of_node() == hosts[0]
        let_gloo_follow()
        assert os.environ["GLOO_SOCKET_IFNAME"] == interface
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")  # the interface counts more
        assert address_of_node() == hosts[0]
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    assert address_of_node() == "127.0.0.1"
