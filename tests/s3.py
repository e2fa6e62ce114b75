"""A real S3 server on the loopback interface, and a proxy in front of it that misbehaves like a network."""

import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

_PIECE = 16384


class Proxy:
    """Passes TCP connections on to `target` (a port), unless a fault is set.

    slow: seconds before each piece that the server sends.  cut_after: bytes of an answer after which the connection
    is cut, for the next `cuts` connections.  errors: requests that are answered with a 500 instead.  away: every
    connection is closed at once.
    """

    def __init__(self, target: int) -> None:
        self.slow, self.cut_after, self.cuts, self.errors, self.away = 0.0, 0, 0, 0, False
        self.bytes = 0  # of all answers
        self._target = target
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def set(self, **faults: Any) -> None:
        """Change faults, also for connections that are open."""
        for name, value in faults.items():
            setattr(self, name, value)
        self.cut_all()

    def cut_all(self) -> None:
        """Cut every connection that is open."""
        for one in list(self._open):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def heal(self) -> None:
        self.set(slow=0.0, cuts=0, errors=0, away=False)

    def close(self) -> None:
        self._listener.close()
        self.cut_all()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client:
            if self.away:
                return
            if self.errors > 0:
                self.errors -= 1
                with suppress(OSError):
                    client.recv(65536)
                    client.sendall(b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                return
            limit = None
            if self.cuts > 0:
                self.cuts, limit = self.cuts - 1, self.cut_after
            with socket.create_connection(("127.0.0.1", self._target)) as server:
                self._open |= {client, server}
                forward = threading.Thread(target=_pump, args=(client, server), daemon=True)
                forward.start()
                self._answer(server, client, limit)
                for one in (client, server):
                    with suppress(OSError):
                        one.shutdown(socket.SHUT_RDWR)
                self._open -= {client, server}

    def _answer(self, server: socket.socket, client: socket.socket, limit: int | None) -> None:
        passed = 0
        with suppress(OSError):
            while data := server.recv(_PIECE):
                if self.slow:
                    time.sleep(self.slow)
                if limit is not None and passed + len(data) > limit:
                    client.sendall(data[: limit - passed])
                    return
                client.sendall(data)
                passed += len(data)
                self.bytes += len(data)


def _pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(_PIECE):
            target.sendall(data)


class Bucket:
    """A bucket of the server, written without the proxy, read through it."""

    def __init__(self, port: int, proxy: Proxy) -> None:
        import boto3

        self.proxy = proxy
        self._client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}")
        self._client.create_bucket(Bucket="data")

    def upload(self, folder: Path, name: str) -> str:
        """Put the files of a folder under a name; returns its URL."""
        for path in sorted(folder.iterdir()):
            if path.is_file():
                self.put(f"{name}/{path.name}", path.read_bytes())
        return f"s3://data/{name}"

    def put(self, key: str, content: bytes) -> None:
        self._client.put_object(Bucket="data", Key=key, Body=content)

    @contextmanager
    def instead(self, key: str, content: bytes | None) -> Iterator[None]:
        """Another content of an object for a while; none: no object."""
        before = self._client.get_object(Bucket="data", Key=key)["Body"].read()
        self.delete(key) if content is None else self.put(key, content)
        try:
            yield
        finally:
            self.put(key, before)

    def delete(self, key: str) -> None:
        self._client.delete_object(Bucket="data", Key=key)


def variables(port: int) -> Mapping[str, str]:
    """What a client needs to find the server on `port`."""
    return {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


@contextmanager
def bucket() -> Iterator[Bucket]:
    """A server with an empty bucket; this process and its children find it, through the proxy, by the environment."""
    import logging

    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    port = server.get_host_and_port()[1]
    proxy = Proxy(port)
    before = {name: os.environ.get(name) for name in variables(0)}
    os.environ.update(variables(proxy.port))
    try:
        yield Bucket(port, proxy)
    finally:
        proxy.close()
        server.stop()
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
