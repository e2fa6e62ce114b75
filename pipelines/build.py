"""Building a dataset: sources -> tokenizer -> shards (one Ray task each) -> dataset.json.

What makes it exact:
  * documents are assigned to shards regardless of workers, so any number of workers writes the same bytes;
  * a shard is renamed into place whole and counts only with its index, so a killed task leaves nothing, its rerun
    leaves one shard, and two concurrent runs leave the same one;
  * build.json names what is being built (settings and files); shards are kept when the same build is started again,
    and finished shards of another build are only touched on request;
  * dataset.json comes last, made from the indexes alone.
Memory does not grow with the corpus, except for one small record per shard.
"""

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from brt_dist.data.format import (
    BUILD_FILE,
    DATASET_FILE,
    DOCUMENTS_FILE,
    FORMAT,
    TOKENIZER_FILE,
    DatasetRecord,
    ShardRecord,
    token_type,
)
from brt_dist.data.tokenizers import (
    BYTES_FILE,
    Tokenizer,
    bpe_size,
    digest,
    load_tokenizer,
    lost_text,
    parse_tokenizer,
    train_bpe,
)
from brt_dist.errors import DataError
from brt_dist.files import write_atomic
from brt_dist.reading import read_json
from pipelines.cluster import is_connected, running_ray
from pipelines.finish import finish_dataset
from pipelines.selection import Duplicates, Split, has_hashes, remove_hashes
from pipelines.shard_contents import Listing, ShardContents, divide_into_shards, list_sources, sample
from pipelines.shards import OnBad, ShardSettings, bad_document_error, finished_shard, write_shard
from pipelines.sources import BY_RULE, BadDocument, Source, open_sources
from pipelines.tasks import Work, hash_documents, run_tasks, write

TRAINING_CHARACTERS = 256 << 20  # about how much text a BPE is trained on; with more, merges hardly change
CHECKED_CHARACTERS = 1 << 20  # characters of the corpus that must survive the tokenizer
CHECKED_PER_DOCUMENT = 1 << 16
LOCK_FILE = ".build.lock"
_LOSSY_HINT = "; --lossy allow accepts this; bytes and bpe:SIZE lose nothing"
# What may change when a build is resumed: a finished shard is the same for either value, or is written again.
_NOT_PART_OF_THE_BUILD = ("on_bad", "lossy")
_SMALL = 32 << 20  # bytes of text that this process encodes within seconds
_LARGEST_READ = 32  # shards' worth of text for one shard of a split


@dataclass(frozen=True)
class BuildSettings:
    """What to build.

    Attributes:
        tokenizer: "bytes", "bpe:SIZE" or the path of a tokenizer.json.
        shard_size: bytes of text per shard.
        deduplicate: keep only the first of equal documents.
        split: keep only one side of the corpus.
    """

    sources: tuple[str, ...]
    tokenizer: str = "bpe:32768"
    shard_size: int = 64 << 20
    suffixes: tuple[str, ...] = ()
    text_field: str = "text"
    on_bad: OnBad = "error"
    lossy: Literal["error", "allow"] = "error"
    deduplicate: bool = False
    split: Split | None = None

    @property
    def text_per_shard(self) -> int:
        """Bytes of text that are read for a shard: more than its size where a split takes only some of them."""
        taken = max(self.split.taken, 1 / _LARGEST_READ) if self.split else 1
        return int(self.shard_size / taken)


@dataclass(frozen=True)
class BuildReport:
    """What a build did.

    Attributes:
        written_tokens: of the shards that it wrote.
        writing_seconds: time it took to write them, without the start of Ray and what comes before and after.
    """

    folder: Path
    dataset: DatasetRecord
    written_shards: int
    kept_shards: int
    seconds: float
    written_tokens: int
    writing_seconds: float

    @property
    def tokens_per_second(self) -> float:
        """Of the shards that it wrote; 0 if it wrote none."""
        return self.written_tokens / self.writing_seconds if self.written_tokens else 0.0


class BuildProgress:
    """Receives the progress of a build; the base class ignores it."""

    def stage(self, text: str) -> None:
        """A new stage of the build starts."""

    def note(self, text: str) -> None:
        """A message for the user."""

    def shards(self, done: int, total: int, tokens: int) -> None:
        """Finished shards, of all; tokens that this build wrote so far."""


def build(
    settings: BuildSettings,
    folder: Path,
    *,
    workers: int | None = None,
    ray_address: str | None = None,
    overwrite: bool = False,
    progress: BuildProgress | None = None,
) -> BuildReport:
    """Build the dataset `folder`, or resume an interrupted build.

    Args:
        settings: what to build.
        folder: of the dataset.
        workers: parallel tasks, by default one per core for more than 32 MB; 0: no Ray, this process does the work.
        ray_address: cluster to use instead of this machine; sources and folder must be on its shared storage.
        overwrite: replace a different build in `folder`.
        progress: receives the progress.

    Raises:
        DataError: sources, tokenizer or documents cannot be used, or the folder holds a different build.
    """
    began, progress = time.perf_counter(), progress or BuildProgress()
    folder = folder.absolute()
    if settings.shard_size < 1:
        raise DataError("the shard size must be positive")
    if settings.split and not 0 < settings.split.share < 1:
        raise DataError(f"the share that is held out must be between 0 and 1, not {settings.split.share}")
    sources = open_sources(settings.sources, settings.suffixes)
    progress.stage("listing the sources")
    listing = list_sources(sources, settings.text_per_shard)
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        state = _claim(folder, settings, listing, overwrite)
        tokenizer = _tokenizer(folder, settings, sources, listing, state, progress)
        progress.stage("building shards")
        shards = _Shards(folder, settings, sources, listing, progress)
        shards.write_missing(tokenizer, workers, ray_address)
        if settings.split and not any(record.documents for record in shards.records.values()):
            raise DataError(
                f"no document is on the side {settings.split.side} with a share of {settings.split.share:g}; "
                "give a larger --validation-share"
            )
        if list_sources(sources, settings.text_per_shard) != listing:
            raise DataError("the source files changed during the build; start it again")
        records = [shards.records[number] for number in range(listing.shards)]
        names = [source.name for source in sources]
        dtype = token_type(tokenizer.vocab_size)
        dataset = finish_dataset(folder, names, tokenizer, records, dtype, listing.left_out)
        remove_hashes(folder)
    return BuildReport(
        folder=folder,
        dataset=dataset,
        written_shards=listing.shards - shards.kept,
        kept_shards=shards.kept,
        seconds=time.perf_counter() - began,
        written_tokens=shards.written_tokens,
        writing_seconds=shards.seconds,
    )


class _Shards:
    """The shards of a build: those that exist, and the writing of the others."""

    def __init__(
        self,
        folder: Path,
        settings: BuildSettings,
        sources: Sequence[Source],
        listing: Listing,
        progress: BuildProgress,
    ) -> None:
        self.folder, self.settings, self.sources = folder, settings, sources
        self.total, self.bytes, self.progress = listing.shards, listing.text_bytes, progress
        self.records: dict[int, ShardRecord] = {}
        self.written_tokens, self.seconds = 0, 0.0
        for number in range(listing.shards):
            record = finished_shard(folder, number)
            if record and (settings.on_bad == "skip" or not record.skipped.keys() - BY_RULE):
                self.records[number] = record
        self.kept_numbers = frozenset(self.records)
        progress.shards(self.kept, self.total, 0)

    @property
    def kept(self) -> int:
        """Shards that already existed."""
        return len(self.kept_numbers)

    def write_missing(self, tokenizer: Tokenizer, workers: int | None, ray_address: str | None) -> None:
        """Write all missing shards, on Ray or, without workers, here."""
        if self.kept == self.total:
            return
        settings = ShardSettings(self.settings.text_field, self.settings.on_bad, self.settings.split)
        if workers is None and ray_address is None and self.bytes <= _SMALL and not is_connected():
            workers = 0  # Ray would take longer to start than this takes
        if workers != 0:
            self.progress.stage("starting Ray" if ray_address is None else f"joining Ray at {ray_address}")

        def here(work: Work, all_contents: Iterator[ShardContents], finished: Callable[[int, Any], None]) -> None:
            for contents in all_contents:
                finished(contents.number, work(self.folder, contents, settings))

        if workers == 0:
            began = time.perf_counter()
            self._do(here, lambda folder, contents, settings: write_shard(folder, contents, tokenizer, settings))
        else:
            with running_ray(workers, ray_address) as at_once:
                self.progress.stage("building shards")
                began = time.perf_counter()  # the start of Ray does not count as pipeline speed
                self._do(partial(run_tasks, self.folder, settings, at_once), write)
        self.seconds = time.perf_counter() - began

    def _do(self, run: Callable[..., None], write_one: Work) -> None:
        """Write the missing shards; before that, find the duplicates if they should be left out.

        run: does some work for each shard and reports each result, here or in tasks.
        """
        all_contents = partial(divide_into_shards, self.sources, self.settings.text_per_shard)
        missing = (contents for contents in all_contents() if contents.number not in self.kept_numbers)
        if self.settings.deduplicate:
            self.progress.stage("looking for duplicates")
            run(
                hash_documents,
                (contents for contents in all_contents() if not has_hashes(self.folder, contents.number)),
                lambda *_: None,
            )
            duplicates = Duplicates(self.folder, self.total)
            self.progress.stage("building shards")
            missing = (replace(contents, duplicates=duplicates.of(contents.number)) for contents in missing)
        run(write_one, missing, self._add)

    def _add(self, number: int, record: ShardRecord) -> None:
        self.records[number] = record
        self.written_tokens += record.tokens
        self.progress.shards(len(self.records), self.total, self.written_tokens)


def _claim(folder: Path, settings: BuildSettings, listing: Listing, overwrite: bool) -> dict[str, Any]:
    """Make the folder this build's; returns the content of build.json.

    A build with the same settings is resumed.  DataError: the folder holds finished shards of another one.
    """
    from tokenizers import __version__ as tokenizers_version

    told = {key: value for key, value in asdict(settings).items() if key not in _NOT_PART_OF_THE_BUILD}
    for key in ("deduplicate", "split"):  # unless they are set, builds are the same as before these settings existed
        if not told[key]:
            del told[key]
    told["sources"] = [os.path.basename(source.rstrip("/")) for source in settings.sources]
    if bpe_size(settings.tokenizer) is None and settings.tokenizer != "bytes":
        told["tokenizer"] = digest(load_tokenizer(Path(settings.tokenizer)))
    elif settings.tokenizer != "bytes":
        told["tokenizers_version"] = tokenizers_version
    told = json.loads(json.dumps({"format": FORMAT, **told, "files": listing.digest}))
    path = folder / BUILD_FILE
    try:
        state = dict(read_json(path))
    except FileNotFoundError:
        state = {}
    except (OSError, ValueError, TypeError) as error:
        state = {"unreadable": str(error)}
    if state.get("settings") == told:
        return state
    worth_keeping = (folder / DATASET_FILE).exists() or any(folder.glob("shard-*.index.json"))
    if worth_keeping and not overwrite:
        before = state.get("settings", {})
        differs = [key for key in told if before.get(key) != told[key]] if before else ["everything"]
        differs = ["names, sizes or times of the files" if key == "files" else key for key in differs]
        raise DataError(
            f"{folder} holds a different build; it differs in: {', '.join(differs)}. "
            "Give another --out, or --overwrite to replace it"
        )
    (folder / DATASET_FILE).unlink(missing_ok=True)  # first: without it the folder is not a dataset
    path.unlink(missing_ok=True)
    for pattern in ("shard-*.index.json", "shard-*.tar", "shard-*.bin", "hashes-*.npy", DOCUMENTS_FILE, TOKENIZER_FILE):
        for file in folder.glob(pattern):
            file.unlink()
    state = {"settings": told}
    write_atomic(path, json.dumps(state, indent=1) + "\n")
    return state


def _tokenizer(
    folder: Path,
    settings: BuildSettings,
    sources: Sequence[Source],
    listing: Listing,
    state: dict[str, Any],
    progress: BuildProgress,
) -> Tokenizer:
    """Make, check and store the tokenizer, or use the one that this build already has."""
    path = folder / TOKENIZER_FILE
    if "tokenizer_sha256" in state and path.is_file():
        tokenizer = load_tokenizer(path)
        if digest(tokenizer) == state["tokenizer_sha256"]:
            if state.get("lossy") and settings.lossy == "error":
                raise DataError(f"{state['lossy']}{_LOSSY_HINT}")
            return tokenizer
        raise DataError(f"{path} has changed since the build started; --overwrite starts it from scratch")

    takes = settings.split.takes if settings.split else lambda text: True

    def texts(budget: int) -> Iterator[tuple[str, str]]:
        for item in sample(sources, settings.text_per_shard, listing, budget, settings.text_field, takes):
            if not isinstance(item, BadDocument):
                yield item.text, item.place
            elif settings.on_bad == "error" and not item.is_by_rule:
                raise bad_document_error(item)

    size = bpe_size(settings.tokenizer)
    if size is not None:
        progress.stage("training the tokenizer")
        tokenizer = parse_tokenizer(train_bpe((text for text, _ in texts(TRAINING_CHARACTERS)), size), "trained BPE")
        if tokenizer.vocab_size < size:
            progress.note(f"the text is too small for {size} tokens; the tokenizer has {tokenizer.vocab_size}")
    elif settings.tokenizer == "bytes":
        tokenizer = parse_tokenizer(BYTES_FILE, "bytes")
    else:
        tokenizer = load_tokenizer(Path(settings.tokenizer))
    progress.stage("checking the tokenizer")
    losses = [
        loss
        for text, place in texts(CHECKED_CHARACTERS)
        if (loss := lost_text(tokenizer, text[:CHECKED_PER_DOCUMENT], place))
    ]
    if losses and settings.lossy == "error":
        raise DataError(f"{losses[0]}{_LOSSY_HINT}")
    if losses:
        progress.note(f"{len(losses)} sampled documents lose text, for example {losses[0]}")
    state["lossy"] = losses[0] if losses else None
    write_atomic(path, tokenizer.file)
    state["tokenizer_sha256"] = digest(tokenizer)
    write_atomic(folder / BUILD_FILE, json.dumps(state, indent=1) + "\n")
    return tokenizer


def _sweep(folder: Path) -> None:
    """Remove the temporary files of killed processes."""
    for file in folder.glob(".*.tmp-*"):
        file.unlink(missing_ok=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Own the folder for the block, and leave no temporary files.  DataError: another build owns it."""
    with open(folder / LOCK_FILE, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"{folder}: another build is writing there; wait for it or give another --out") from None
        try:
            _sweep(folder)
            yield
        finally:
            _sweep(folder)
