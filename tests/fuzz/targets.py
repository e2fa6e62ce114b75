"""Readers of files that anybody may have written, each as a function of the bytes of one file, with a first input.

Whatever the bytes are, a reader returns or raises an error of ours.
"""

import json
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from brt_dist.errors import BrtError

DATA = Path(__file__).parents[1] / "data"
CONFIG = (
    b"data: {dataset: books}\nmodel: {window: 8, mixers: {window: {}}}\nrun: {directory: r, steps: 10, seed: 1e3}\n"
)
EVENTS = (
    b'{"event": "step", "time": 2.0, "attempt": 1, "step": 1, "loss": 2.0, "tokens": 64}\n'
    b'{"event": "evaluation", "step": 1, "dataset": "v", "memory": "carried", '
    b'"positions": [{"from": 0, "loss": 1, "tokens": 2}]}\n'
)


class Target(NamedTuple):
    """read: what is fuzzed.  seeds: inputs to start from."""

    read: Callable[[bytes], object]
    seeds: Callable[[], list[bytes]]


@cache
def folder() -> Path:
    """A folder in memory, for readers that want a path."""
    memory = Path("/dev/shm")
    return Path(tempfile.mkdtemp(prefix="brt-fuzz-", dir=memory if memory.is_dir() else None))


def placed(name: str, data: bytes) -> Path:
    path = folder() / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def config(data: bytes) -> None:
    from brt_dist.config.loading import load

    load([placed("config.yaml", data)])


def events(data: bytes) -> None:
    from launch.run.history import History

    placed("run/metrics.jsonl", data)
    History.read(folder() / "run")


def manifest(data: bytes) -> None:
    """With a matching digest, or nothing after it is ever read."""
    from brt_dist.checkpoint.manifest import Manifest, _digest
    from brt_dist.reading import parse_json

    try:
        values = parse_json(data)
    except ValueError:
        values = None
    if isinstance(values, dict):
        values.pop("digest", None)
        data = json.dumps({**values, "digest": _digest(values)}).encode()
    Manifest.parse(data, "here")


def index(data: bytes) -> None:
    from brt_dist.data.format import load_dataset, load_index

    path = placed("dataset.json", data)
    for reader in (load_index, lambda path: load_dataset(path.parent)):
        with suppress(BrtError):
            reader(path)


def documents(data: bytes) -> None:
    from brt_dist.data.format import open_documents, open_hashes

    path = placed("documents.npy", data)
    for reader in (open_documents, open_hashes):
        with suppress(BrtError):
            reader(path, 2)


def megatron(data: bytes) -> None:
    from pipelines.megatron import read_index

    placed("x.bin", b"\0" * 12)
    found = read_index(placed("x.idx", data).with_suffix(".bin"))
    assert (found.offsets >= 0).all() and (found.offsets + 2 * found.tokens <= 12).all()


def source(suffix: str) -> Callable[[bytes], None]:
    def read(data: bytes) -> None:
        from pipelines.sources import open_sources, read_units

        (given,) = open_sources([str(placed(f"x{suffix}", data))])
        for _ in read_units(given.units(100), "text"):
            pass

    return read


def foreign(kind: str, name: str, file: str) -> Callable[[bytes], None]:
    """A file of another library's dataset."""

    def read(data: bytes) -> None:
        from pipelines.sources import open_sources, read_units

        there = folder() / name
        if not there.exists():
            shutil.copytree(DATA / "foreign" / name, there)
        (there / file).write_bytes(data)
        (given,) = open_sources([f"{kind}:{there}"])
        for _ in read_units(given.units(1 << 20), "text"):
            pass

    return read


def gpt_config(data: bytes) -> None:
    from brt_dist.config.schema import ModelConfig
    from brt_dist.export.gpt.folder import find_gpt, shape_in

    if (found := find_gpt(str(placed("gpt/config.json", data).parent))) is not None:
        shape = shape_in(found)
        ModelConfig.model_validate({**shape.section(), "vocab_size": shape.vocab_size})


def tensor_file(data: bytes) -> None:
    from brt_dist.checkpoint.ranges import LocalFile
    from brt_dist.checkpoint.tensor_header import read_header

    file = LocalFile(placed("x.safetensors", data))
    try:
        for tensor in read_header(file, "x").values():
            assert tensor.begin <= len(data)
    finally:
        file.close()


def _file(*parts: str) -> Callable[[], list[bytes]]:
    return lambda: [DATA.joinpath(*parts).read_bytes()]


def _manifest() -> list[bytes]:
    return [next((DATA / "runs_of_0_1_0").rglob("manifest.json")).read_bytes()]


def _dataset() -> list[bytes]:
    from tests.datasets import make_dataset

    made = make_dataset(Path(tempfile.mkdtemp(prefix="brt-fuzz-")), ["one", "two"]).folder
    return [(made / name).read_bytes() for name in ("dataset.json", "shard-000000.index.json")]


def _documents() -> list[bytes]:
    import numpy as np

    out = BytesIO()
    np.save(out, np.array([[512, 1024], [3, 4]], dtype="<i8"))
    return [out.getvalue()]


def _megatron() -> list[bytes]:
    import numpy as np

    head = b"MMIDIDX\0\0" + (1).to_bytes(8, "little") + b"\x08" + (3).to_bytes(8, "little") * 2
    rest = [
        np.array(values, dtype).tobytes()
        for values, dtype in (([1, 2, 3], "<i4"), ([0, 2, 6], "<i8"), ([0, 1, 3], "<i8"))
    ]
    return [head + b"".join(rest), head + b"".join(rest) + b"\0\0\0"]


def _sources(suffix: str) -> Callable[[], list[bytes]]:
    from tests.unit.fuzz.test_files_of_others import SOURCES

    return lambda: [SOURCES[suffix]()]


TARGETS = {
    "config": Target(config, lambda: [CONFIG]),
    "events": Target(events, lambda: [EVENTS]),
    "manifest": Target(manifest, _manifest),
    "index": Target(index, _dataset),
    "documents": Target(documents, _documents),
    "megatron": Target(megatron, _megatron),
    "tar": Target(source(".tar"), _sources("tar")),
    "jsonl": Target(source(".jsonl"), _sources("jsonl")),
    "text": Target(source(".txt"), _sources("txt")),
    "parquet": Target(source(".parquet"), _sources("parquet")),
    "hf": Target(foreign("hf", "hf", "data-00000-of-00003.arrow"), _file("foreign", "hf", "data-00000-of-00003.arrow")),
    "hf_state": Target(foreign("hf", "hf", "state.json"), _file("foreign", "hf", "state.json")),
    "mds": Target(foreign("mds", "mds", "shard.00000.mds"), _file("foreign", "mds", "shard.00000.mds")),
    "mds_index": Target(foreign("mds", "mds", "index.json"), _file("foreign", "mds", "index.json")),
    "gpt_config": Target(gpt_config, _file("gpt", "llama", "config.json")),
    "tensor_file": Target(tensor_file, _file("gpt", "llama", "model-00002-of-00002.safetensors")),
}
