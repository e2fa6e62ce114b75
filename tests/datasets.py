"""Small datasets for tests, made by the real build without Ray."""

from collections.abc import Sequence
from pathlib import Path

from pipelines.build import BuildReport, BuildSettings, build


def make_dataset(
    folder: Path, texts: Sequence[str], *, tokenizer: str = "bytes", shard_size: int = 1 << 20
) -> BuildReport:
    """Write `texts` as documents under `folder`/corpus, in order, and build `folder`/dataset from them."""
    corpus = folder / "corpus"
    corpus.mkdir(parents=True)
    for number, text in enumerate(texts):
        (corpus / f"{number:05d}.txt").write_bytes(text.encode())
    settings = BuildSettings((str(corpus),), tokenizer=tokenizer, shard_size=shard_size)
    return build(settings, folder / "dataset", workers=0)
