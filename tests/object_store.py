"""An object store that speaks S3, on this machine: moto behind a real HTTP server."""

import os
import threading
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

BUCKET = "bucket"


class ObjectStore:
    """url: `s3://` place of the bucket; environment: variables with which clients find the server.

    While `fault` is set, it is asked about every request (method, path): true, and the answer is 503.
    """

    def __init__(self, endpoint: str) -> None:
        self.url = f"s3://{BUCKET}"
        self.environment = {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_MAX_ATTEMPTS": "2",
        }
        self.fault: Callable[[str, str], bool] | None = None


@contextmanager
def object_store() -> Iterator[ObjectStore]:
    """A running store with an empty bucket; `os.environ` points to it meanwhile."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    application = DomainDispatcherApplication(create_backend_app)

    def answer(environment: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        if store.fault is not None and store.fault(environment["REQUEST_METHOD"], environment["PATH_INFO"]):
            start("503 Service Unavailable", [("Content-Type", "application/xml")])
            return [b"<Error><Code>ServiceUnavailable</Code><Message>out of order</Message></Error>"]
        return application(environment, start)

    server = make_server("127.0.0.1", 0, answer, threaded=True)
    server_url = f"http://127.0.0.1:{server.server_port}"
    store = ObjectStore(server_url)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    before = dict(os.environ)
    os.environ.update(store.environment)
    try:
        import s3fs

        # what another store of this process left
        urllib.request.urlopen(urllib.request.Request(f"{server_url}/moto-api/reset", method="POST")).read()
        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem(skip_instance_cache=True).mkdir(BUCKET)
        yield store
    finally:
        server.shutdown()
        os.environ.clear()
        os.environ.update(before)
