"""`reference`: an .npz file with the parameter names of the authors' code, and a .json beside it."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from brt_dist.export.formats.base import SHARD_BYTES, WeightFormat

if TYPE_CHECKING:
    from brt_dist.config.schema import ModelConfig
    from brt_dist.export.weights import Weights


class Reference(WeightFormat):
    about = "model.npz with the names of the authors' code, and a .json beside it"

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        return path.suffix == ".npz"

    @classmethod
    def open(cls, path: Path, model: "ModelConfig | None", *, verify: bool) -> AbstractContextManager["Weights"]:
        from brt_dist.export.npz import open_npz

        return nullcontext(open_npz(path, model))

    @classmethod
    def write(cls, weights: "Weights", out: Path, shard_bytes: int = SHARD_BYTES) -> list[str]:
        from brt_dist.export.npz import write_npz

        return write_npz(weights, out)
