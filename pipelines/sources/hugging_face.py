"""Datasets that Hugging Face's `datasets` saved to disk (`save_to_disk`): Arrow files, read as streams."""

from collections.abc import Iterator
from typing import Any

from brt_dist.errors import DataError
from brt_dist.reading import parse_json
from pipelines.sources.base import TreeKind
from pipelines.sources.documents import BadDocument, Document, Unit
from pipelines.sources.packed import NoText, arrow_column, documents_of
from pipelines.sources.places import filesystem_of, is_remote, opened, stamp

_MOST_BYTES = 16 << 20  # of state.json


class SavedDataset(TreeKind):
    about = "a row of a dataset saved to disk by Hugging Face's datasets"
    wanted = "no Hugging Face dataset (a folder with state.json and .arrow files)"

    @classmethod
    def units(cls, folder: str, name: str) -> Iterator[Unit]:
        """A unit per Arrow file, in the order of the dataset."""
        filesystem, path = filesystem_of(folder)
        if filesystem.exists(f"{path}/dataset_dict.json"):
            splits = _json(filesystem, f"{path}/dataset_dict.json").get("splits", [])
            raise DataError(
                f"{folder} holds several datasets ({', '.join(map(str, splits))}); nearest: hf:{folder}/{splits[0]}"
                if splits
                else f"{folder}: dataset_dict.json names no dataset"
            )
        if not filesystem.exists(f"{path}/state.json"):
            return
        files = _json(filesystem, f"{path}/state.json").get("_data_files", [])
        for file in files if isinstance(files, list) else []:
            base = file.get("filename") if isinstance(file, dict) else None
            if not isinstance(base, str) or "/" in base:
                raise DataError(f"{folder}/state.json: names no file in _data_files: {file!r}"[:300])
            try:
                info = filesystem.info(f"{path}/{base}")
            except FileNotFoundError:
                raise DataError(f"{folder}: {base} is missing, which state.json names") from None
            url = filesystem.unstrip_protocol(info["name"]) if is_remote(folder) else info["name"]
            yield Unit(url, f"{name}/{base}", "hf", 0, int(info["size"] or 0), stamp(info))

    def read(self, unit: Unit) -> Iterator[Document | BadDocument]:
        with opened(unit.url) as file:
            try:
                yield from documents_of(arrow_column(file, self.text_field), unit, self.text_field)
            except NoText as error:
                yield BadDocument(unit.name, error.args[0])


def _json(filesystem: Any, path: str) -> dict[str, Any]:
    """A small JSON file.  DataError: it is not JSON."""
    with filesystem.open(path, "rb") as file:
        text = file.read(_MOST_BYTES)
    try:
        found = parse_json(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise DataError(f"{path} is not an object of JSON")
    return found
