"""Configs of the tests in this folder: the recipes in examples/ on any layout."""

from pathlib import Path

from brt_dist.config.loading import load
from brt_dist.config.schema import Config, ParallelConfig

EXAMPLES = Path(__file__).parents[3] / "examples"


def recipe(name: str, *overrides: str) -> Config:
    given = ["model.vocab_size=131072", "data.dataset=data/train", *overrides]
    return load(EXAMPLES / f"{name}.yaml", given).config


def layout(**sizes: object) -> ParallelConfig:
    return ParallelConfig.model_validate(sizes)
