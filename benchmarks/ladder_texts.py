"""The texts of `benchmarks.ladder`: books and code, as bytes and as BPE, and books with facts in them."""

import hashlib
from dataclasses import replace
from pathlib import Path

TEXTS = ("books", "books, bytes", "code", "code, bytes")
CODE_BYTES = {"train": 24 << 20, "validation": 400_000}  # a small model does not get through more
LARGEST = 100_000  # bytes of a document of code; larger ones are left out, or few would be held out
FACTS_WINDOW, FACTS_EVERY, FACTS_COPIES = 32, 50, 4
NEAR, FAR = "near", "far"  # corpora with facts, to train on and to be asked in
FACTS_NEAR = 10  # windows; as in the tasks, documents to train on ask for what is not far away


def folder_of(rung: str, out: Path) -> Path:
    """Where the data of a rung is: two corpora with facts, or the datasets train/ and validation/."""
    return out / "data" / rung.replace(", ", "-")


def prepare(rung: str, out: Path) -> None:
    """Make the data of a rung, if it needs any and it is not there."""
    from pipelines.build import BuildSettings, build
    from pipelines.corpora import fetch_books
    from pipelines.facts_corpus import Settings, write_facts

    folder = folder_of(rung, out)
    if rung == "facts":
        far = Settings(FACTS_WINDOW, FACTS_EVERY, at_once=1, copies=FACTS_COPIES)
        for name, settings in ((NEAR, replace(far, farthest=FACTS_NEAR)), (FAR, far)):
            if not (folder / name).exists():
                write_facts(folder / name, fetch_books(out / "books"), settings)
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
