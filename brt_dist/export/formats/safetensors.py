"""`safetensors`: a folder with the weights under logical names, config.json, the run's config and the tokenizer."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brt_dist.export.formats.base import SHARD_BYTES, WeightFormat

if TYPE_CHECKING:
    from brt_dist.config.schema import ModelConfig
    from brt_dist.export.weights import Weights


class Safetensors(WeightFormat):
    about = "logical names, config.json, the run's config.yaml, the tokenizer"

    @classmethod
    def recognizes(cls, path: Path) -> bool:
        return (path / "config.json").is_file()

    @classmethod
    def open(cls, path: Path, model: "ModelConfig | None", *, verify: bool) -> AbstractContextManager["Weights"]:
        from brt_dist.export.folder import open_folder

        return open_folder(path, verify=verify)

    @classmethod
    def write(cls, weights: "Weights", out: Path, shard_bytes: int = SHARD_BYTES) -> list[str]:
        from brt_dist.export.folder import write_folder

        return write_folder(weights, out, cls.texts(weights), shard_bytes, cls.facts())

    @classmethod
    def facts(cls) -> dict[str, Any]:
        """What config.json tells other programs."""
        return {}

    @classmethod
    def texts(cls, weights: "Weights") -> dict[str, str]:
        """The files of text beside the weights and their config.json, by name."""
        import yaml

        if weights.config is None:
            return {}
        return {"config.yaml": yaml.safe_dump(weights.config, sort_keys=False, allow_unicode=True)}
