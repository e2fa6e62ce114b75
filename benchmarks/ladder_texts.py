"""The texts of `benchmarks.ladder`: books and code, as bytes and as BPE, and books with facts in them."""

import hashlib
from pathlib import Path

TEXTS = ("books", "books, bytes", "code", "code, bytes")
CODE_BYTES = {"train": 24 << 20, "validation": 400_000}  # a small model does not get through more
LARGEST = 100_000  # bytes of a document of code; larger ones are left out, or few would be held out
FACTS_WINDOW, FACTS_EVERY, FACTS_COPIES = 16, 200, 4


def folder_of(rung: str, out: Path) -> Path:
    """Where the data of a rung is: a corpus with facts, or the datasets train/ and validation/."""
    return out / "data" / rung.replace(", ", "-")


def prepare(rung: str, out: Path) -> None:
    """Make the data of a rung, if it needs any and it is not there."""
    from pipelines.build import BuildSettings, build
    from pipelines.corpora import fetch_books
    from pipelines.facts_corpus import write_facts

    folder = folder_of(rung, out)
    if rung == "facts":
        if not folder.exists():
            write_facts(folder, fetch_books(out / "books"), FACTS_WINDOW, FACTS_EVERY, FACTS_COPIES, seed=0)
        return
    if rung not in TEXTS:
        return
    corpus, is_bytes = rung.removesuffix(", bytes"), rung.endswith(", bytes")
    if corpus == "books":
        fetch_books(out / corpus)
    elif not (out / corpus).exists():
        from pipelines.code_corpus import write_code

        write_code(out / corpus, per="folder")
    tokenizers = ("bytes", "bytes") if is_bytes else ("bpe:1024", str(folder / "train" / "tokenizer.json"))
    for part, tokenizer in zip(("train", "validation"), tokenizers, strict=True):
        texts = out / corpus / part
        sources = (str(texts),) if corpus == "books" else tuple(map(str, chosen(texts, CODE_BYTES[part])))
        build(BuildSettings(sources, tokenizer, shard_size=1 << 20), folder / part, workers=0)


def chosen(folder: Path, total: int, largest: int = LARGEST) -> list[Path]:
    """Whole documents of at most `largest` bytes, in an order that only their names decide, of about `total` bytes."""
    found = list[Path]()
    for path in sorted(folder.iterdir(), key=lambda path: hashlib.sha256(path.name.encode()).digest()):
        size = path.stat().st_size
        if size <= largest and total > 0:
            found.append(path)
            total -= size
    return found
