"""Hides user names, passwords and tokens of URIs in text that is shown."""

import re

# Up to the last @, even across a /, which a password should not contain: better to hide too much than too little.
_CREDENTIALS = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*://)[^\s'\"]*@")
_SECRET_PARAMETER = re.compile(
    r"(?i)([?&;](?:[\w-]*(?:token|password|passwd|secret|key|key_id|credential|sig|signature))=)[^&;#\s]+"
)


def redact(text: str) -> str:
    """`text` with *** for the user names, passwords and tokens of all URIs in it."""
    return _SECRET_PARAMETER.sub(r"\1***", _CREDENTIALS.sub(r"\g<scheme>***@", text))


def without_credentials(uri: str) -> str:
    """`uri` without its user name and password."""
    return _CREDENTIALS.sub(r"\g<scheme>", uri)
