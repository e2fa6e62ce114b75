"""Small checkpoints for tests, written through a storage without torch and without ranks."""

from collections.abc import Mapping
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import save

from brt_dist.checkpoint.manifest import FileEntry, Manifest, TensorEntry, folder_name
from brt_dist.checkpoint.storage import Storage
from brt_dist.config.schema import Config

if TYPE_CHECKING:
    from brt_dist.checkpoint.crew import Crew

TENSORS = {
    "weights/embedding.weight": (6, 4),
    "weights/layers.0.mlp.hidden.weight": (8, 4),
    "optimizer/embedding.weight/exp_avg": (6, 4),
    "memory/layers.0/state": (2, 3, 4),
}
CONFIG = Config.model_validate(
    {"data": {"dataset": "books"}, "run": {"directory": "runs/a", "steps": 9, "keep_checkpoints": 2, "keep_best": 1}}
)


def make_checkpoint(storage: Storage, step: int, **facts: Any) -> Manifest:
    """A whole checkpoint of TENSORS, each filled with `step`; `facts` replace the manifest's usual ones."""
    name, files, tensors = folder_name(step), [], {}
    storage.prepare(name)
    for tensor, shape in TENSORS.items():
        kind, _, rest = tensor.partition("/")
        file = f"{kind}/{'layers.0' if rest.startswith('layers') else 'embedding'}.safetensors"
        content = save({rest: np.full(shape, step, dtype=np.float32)})
        with storage.create(name, file) as output:
            output.write(content)
        files.append(FileEntry(file, len(content), sha256(content).hexdigest()))
        tensors[tensor] = TensorEntry(file, "F32", shape)
    manifest = manifest_of(step, files, tensors, **facts)
    storage.publish(name, manifest.dump())
    return manifest


def manifest_of(step: int, files: list[FileEntry], tensors: Mapping[str, TensorEntry], **facts: Any) -> Manifest:
    usual: dict[str, Any] = {
        "step": step, "updates": step, "tokens": 100 * step, "cursor": {"ordinal": [0, 1], "offset": [0, 0]},
        "evaluations": {}, "config": CONFIG.model_dump(mode="json"), "dataset": "abc", "versions": {"torch": "2"},
        "saved_by": {"tensor": 2, "pipeline": 1, "data": 2, "zero_stage": 1}, "time": 1.6e9,
    }  # fmt: skip
    return Manifest(**(usual | facts), files=tuple(files), tensors=dict(tensors))


def alone() -> "Crew":
    """The only rank."""
    from brt_dist.checkpoint.crew import Crew
    from brt_dist.parallel.layout import Layout

    return Crew(Layout(tensor=1, pipeline=1, data=1, micro_batch=1, streams=1, rank=0), 60.0)
