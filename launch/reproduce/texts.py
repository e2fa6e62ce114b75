"""The datasets that a table is trained and measured on: given ones, or small ones built from a corpus at hand."""

from pathlib import Path

from brt_dist.data.dataset import Dataset
from brt_dist.data.format import DATASET_FILE, TOKENIZER_FILE
from brt_dist.data.tokenizers import bpe_size
from brt_dist.errors import ConfigError
from launch.reproduce.kit import Recipe, SmallData

SPLITS = ("train", "validation")
_SHARD_BYTES = 1 << 20
_BYTES = 256  # of the tokenizer `bytes`


def datasets(name: str, recipe: Recipe, scale: str, given: Path | None, out: Path) -> tuple[Path, Path]:
    """Folders of the training and the held-out dataset; small ones are built if they do not exist.

    Args:
        name: of the recipe.
        recipe: of the data.
        scale: only `paper` needs the paper's data.
        given: a folder of the user with train/ and validation/; None: data/NAME for the scale `paper`, else a corpus.
        out: where corpus and datasets are written.

    Raises:
        ConfigError: they do not exist and cannot be made here; says which commands make them.
    """
    folder = given or Path("data") / name
    if given is None and scale != "paper" and recipe.small is not None:
        folder = _build(recipe.small, out)
    missing = [part for part in SPLITS if not (folder / part / DATASET_FILE).is_file()]
    if missing:
        raise ConfigError(
            f"no dataset in {folder / missing[0]}; --dataset FOLDER names a folder with train/ and validation/.  From "
            f"the public source, in the root of a checkout:\n{_indented(recipe.public)}\nor from a folder of yours:\n"
            f"{_indented(recipe.local)}"
        )
    train, validation = (folder / part for part in SPLITS)
    return train, validation


def vocabulary(recipe: Recipe, scale: str, given: Path | None) -> int:
    """Size of the vocabulary, known before a dataset is built."""
    if given is not None and (given / "train" / DATASET_FILE).is_file():
        return Dataset.open(given / "train").vocab_size
    if given is not None or scale == "paper" or recipe.small is None:
        return recipe.vocabulary
    return bpe_size(recipe.small.tokenizer) or _BYTES


def _build(small: SmallData, out: Path) -> Path:
    from pipelines.build import BuildSettings, build
    from pipelines.code_corpus import write_code
    from pipelines.corpora import fetch_books

    corpus = out / "corpus" / small.corpus
    folder = out / f"{small.corpus}-{small.tokenizer.replace(':', '')}"
    if all((folder / part / DATASET_FILE).is_file() for part in SPLITS):
        return folder
    if small.corpus == "books":
        fetch_books(corpus)
    else:
        write_code(corpus)
    trained = small.tokenizer if small.tokenizer == "bytes" else str(folder / "train" / TOKENIZER_FILE)
    for part, tokenizer in zip(SPLITS, (small.tokenizer, trained), strict=True):
        build(BuildSettings((str(corpus / part),), tokenizer, shard_size=_SHARD_BYTES), folder / part, workers=0)
    return folder


def _indented(commands: str) -> str:
    return "\n".join(f"  {line}" for line in commands.splitlines())
