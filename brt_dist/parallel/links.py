"""Links between ranks for data in host memory, made on first use, separate from the process groups of training.

A process group of all ranks has a connection between every two of them, and its timeout is that of training's
collectives.  Here a rank connects only to the ranks that it sends to, and the timeout is separate.  Each connection
goes one way and begins with a secret, which its receiver chose and sent to the other ranks.
"""

import secrets
import socket
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

_BACKLOG = 1024  # connections that may wait to be accepted
_GREETING_SECONDS = 10.0  # to identify oneself
_SECRET = 16  # bytes
_RANK = 4  # bytes
_LENGTH = 8  # bytes


@dataclass(frozen=True)
class Address:
    """Where a rank listens, and the secret with which a connection to it begins."""

    host: str
    port: int
    secret: bytes


class LinkError(Exception):
    """Another rank is gone, or does not respond.  Not an OSError, because those are about files."""


class Links:
    """This rank's links.  One thread may send while another receives.

    Methods raise LinkError if a rank is gone or does not respond in time.

    Args:
        rank: this rank.
        seconds: how long to wait for another rank.
        host: this node's address, at which the other ranks reach it.

    Attributes:
        address: where this rank listens; the other ranks need it.
    """

    def __init__(self, rank: int, seconds: float, host: str) -> None:
        self._rank, self._seconds = rank, seconds
        self._listener = socket.create_server(
            (host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=_BACKLOG
        )
        self.address = Address(host, self._listener.getsockname()[1], secrets.token_bytes(_SECRET))
        self._others: dict[int, Address] = {}
        self._outgoing: dict[int, socket.socket] = {}
        self._incoming: dict[int, socket.socket] = {}
        self._arrived = threading.Condition()
        threading.Thread(target=self._accept, name="links", daemon=True).start()

    def meet(self, others: Mapping[int, Address]) -> None:
        """Learn where other ranks listen."""
        self._others.update(others)

    @property
    def connections(self) -> int:
        """Number of this rank's open connections, both ways."""
        return len(self._outgoing) + len(self._incoming)

    def send(self, data: memoryview | bytes, receiver: int) -> None:
        """Send `data`; returns when it is on its way.  The receiver must ask for the same number of bytes."""
        try:
            if receiver not in self._outgoing:
                self._outgoing[receiver] = self._connect(self._others[receiver])
            self._outgoing[receiver].sendall(data)
        except OSError as error:
            raise LinkError(f"cannot send to rank {receiver}: {error}") from error

    def receive_into(self, buffer: memoryview, sender: int) -> None:
        """Fill `buffer` with the next bytes from a rank."""
        with self._arrived:
            if not self._arrived.wait_for(lambda: sender in self._incoming, self._seconds):
                raise LinkError(f"rank {sender} sent nothing for {self._seconds:.0f} s")
        try:
            _fill(self._incoming[sender], buffer)
        except OSError as error:
            raise LinkError(f"cannot receive from rank {sender}: {error}") from error

    def send_text(self, text: str, receiver: int) -> None:
        """Send a text of any length."""
        data = text.encode()
        self.send(len(data).to_bytes(_LENGTH, "little") + data, receiver)

    def receive_text(self, sender: int) -> str:
        """The next text from a rank."""
        length = bytearray(_LENGTH)
        self.receive_into(memoryview(length), sender)
        data = bytearray(int.from_bytes(length, "little"))
        self.receive_into(memoryview(data), sender)
        return data.decode()

    def close(self) -> None:
        """Close all connections, and stop listening."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        self._listener.close()
        for connection in [*self._outgoing.values(), *self._incoming.values()]:
            connection.close()

    def _connect(self, address: Address) -> socket.socket:
        connection = socket.create_connection((address.host, address.port), self._seconds)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(address.secret + self._rank.to_bytes(_RANK, "little"))
        return connection

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return  # closed
            sender = self._greeted(connection)
            if sender is None:
                connection.close()
                continue
            connection.settimeout(self._seconds)
            with self._arrived:
                self._incoming[sender] = connection
                self._arrived.notify_all()

    def _greeted(self, connection: socket.socket) -> int | None:
        """The rank at the other end of a new connection; None if it does not know the secret."""
        greeting = bytearray(_SECRET + _RANK)
        try:
            connection.settimeout(_GREETING_SECONDS)
            _fill(connection, memoryview(greeting))
        except OSError:
            return None
        if not secrets.compare_digest(bytes(greeting[:_SECRET]), self.address.secret):
            return None
        return int.from_bytes(greeting[_SECRET:], "little")


def _fill(connection: socket.socket, buffer: memoryview) -> None:
    while len(buffer):
        count = connection.recv_into(buffer)
        if not count:
            raise ConnectionError("connection closed")
        buffer = buffer[count:]
