"""Unsupported formats, recognised by the first bytes of their files, so that messages can name them."""

_FORMATS = {
    b"%PDF-": "a PDF file",
    b"PK\x03\x04": "a zip file (such as .docx, .epub or .npz)",
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": "an old Office file (such as .doc)",
    b"{\\rtf": "an RTF file",
    b"\x1f\x8b": "a gzip file",
    b"\x28\xb5\x2f\xfd": "a zstd file",
    b"BZh": "a bzip2 file",
    b"\xfd7zXZ\x00": "an xz file",
    b"7z\xbc\xaf\x27\x1c": "a 7z file",
    b"Rar!\x1a\x07": "a rar file",
    b"\x89PNG\r\n": "a picture (PNG)",
    b"\xff\xd8\xff": "a picture (JPEG)",
    b"\x89HDF\r\n\x1a\n": "an HDF5 file",
    b"SQLite format 3\x00": "an SQLite file",
    b"PAR1": "a Parquet file",
    b"ARROW1\x00\x00": "an Arrow file",
    b"\x93NUMPY": "a NumPy file",
    b"Obj\x01": "an Avro file",
    b"MMIDIDX\x00\x00": "an index of Megatron",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
_PLAIN = (b"BZh", b"PAR1")  # a text may begin like this as well


def format_of(data: bytes) -> str | None:
    """The format of a file that is not UTF-8 text, in words; None: it may be text, or is of an unknown format."""
    for signature, name in _FORMATS.items():
        if data.startswith(signature) and (signature not in _PLAIN or not _is_text(data[:4096])):
            return name
    return None


def _is_text(data: bytes) -> bool:
    return b"\x00" not in data and not any(byte >= 0x80 for byte in data)
