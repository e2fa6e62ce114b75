"""Recognises a host that cannot be reached, however the library of a URL's protocol reports it."""

import os
import re
from collections.abc import Iterator

# Classes of the libraries behind fsspec and of Hugging Face's hub, by name: none is imported just for a message.
_SIGNS = frozenset(
    (
        "ClientConnectorError",  # aiohttp: https://
        "ConnectionTimeoutError",
        "EndpointConnectionError",  # botocore: s3://
        "ConnectTimeoutError",
        "ProxyConnectionError",
        "ConnectError",  # httpx: hf://
        "ConnectTimeout",
        "ProxyError",
        "NewConnectionError",  # urllib3: gs://
        "MaxRetryError",
        "OfflineModeIsEnabled",
        "ConnectionRefusedError",
        "gaierror",
    )
)
_HOST = re.compile(r"(?<![\w+])https?://([^/\s\"'?#,)\]]+)")
_REASON = re.compile(
    r"Name or service not known|(?:Temporary failure|No address).{0,40}|nodename nor servname \w+|Connection refused|"
    r"No route to host|Network is unreachable|timed out|HF_HUB_OFFLINE\S*|certificate verify failed",
    re.IGNORECASE,
)
_HOSTS = {"s3": "s3.amazonaws.com", "hf": "huggingface.co", "gs": "storage.googleapis.com"}
_ENDPOINTS = {"s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"), "hf": ("HF_ENDPOINT",)}


def unreachable(place: str, error: BaseException) -> str | None:
    """`HOST cannot be reached (why)`, if that is the cause of an error; otherwise None.

    Args:
        place: the requested URL; a name without a protocol is on Hugging Face's hub.
        error: what the library of its protocol raised.
    """
    errors = list(_causes(error))
    if not any(kind.__name__ in _SIGNS for each in errors for kind in type(each).__mro__):
        return None
    texts = [str(each) for each in errors]
    reason = next((found[0] for text in texts if (found := _REASON.search(text))), None)
    return f"{_host(place, texts)} cannot be reached" + (f" ({reason})" if reason else "")


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and those that led to it."""
    seen = set[int]()
    following: BaseException | None = error
    while following is not None and id(following) not in seen:
        seen.add(id(following))
        yield following
        following = following.__cause__ or following.__context__


def _host(place: str, texts: list[str]) -> str:
    """The requested host, as named by the place, or else by the environment or the error."""
    protocol, has_protocol, _ = place.partition("://")
    if not has_protocol:
        protocol = "hf"
    endpoints = (os.environ.get(name, "") for name in _ENDPOINTS.get(protocol, ()))
    for text in (place, *endpoints, *texts):
        if (found := _HOST.search(text)) is not None:
            return found[1].rpartition("@")[2]  # no password
    return _HOSTS.get(protocol, f"the server of {place}")
