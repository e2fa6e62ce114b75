"""One rank of an evaluation: `python -m brt_dist.eval_worker FOLDER`, started by `brt eval` for a layout.

It reads torchrun's environment variables and FOLDER/request.json and config.yaml; rank 0 writes FOLDER/results.json.  A
rank that fails leaves FOLDER/rank_RRR.error.json.
"""

import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brt_dist.errors import ExitCode
from brt_dist.failure import Failure
from brt_dist.files import write_atomic

if TYPE_CHECKING:
    from brt_dist.data.reader import Documents
    from brt_dist.evaluation.forgetting import MemoryPass
    from brt_dist.evaluation.score import Score
    from brt_dist.parallel.engine import Engine

_EVERY_SECONDS = 0.5  # between signs of progress


@dataclass(frozen=True)
class EvaluationRequest:
    """What the ranks should do.

    Attributes:
        source: weights, as for `open_weights`.
        step: of the checkpoint; None: the newest.
        places: datasets of `brt data build`, or files of `InMemoryDataset.save`.
        documents: read only the first of each; None: all.
        passes: everything is read once in each.
        watch: also watch layers with a state, in passes that carry memory.
        judged: for each place, whether to count what is legal there.
    """

    source: str
    step: int | None
    places: tuple[str, ...]
    documents: int | None
    passes: "tuple[MemoryPass, ...]"
    watch: bool
    judged: tuple[bool, ...]


@dataclass(frozen=True)
class EvaluationFolder:
    """The files of an evaluation."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def request(self) -> Path:
        return self.path / "request.json"

    @property
    def progress(self) -> Path:
        """Tokens predicted so far, as text."""
        return self.path / "progress"

    @property
    def results(self) -> Path:
        """Scores in the order of places and passes (`Score.to_json`)."""
        return self.path / "results.json"

    def log(self, rank: int) -> Path:
        return self.path / f"rank_{rank:03d}.log"

    def failure(self, rank: int) -> Path:
        return self.path / f"rank_{rank:03d}.error.json"

    def write(self, request: EvaluationRequest) -> None:
        """Write the request."""
        write_atomic(self.request, json.dumps(asdict(request)))

    def read(self) -> EvaluationRequest:
        """Read it back."""
        from brt_dist.evaluation.forgetting import MemoryPass

        found = json.loads(self.request.read_text())
        passes = tuple(MemoryPass(one["name"], one["use"], one["layers"]) for one in found["passes"])
        places, judged = tuple(found["places"]), tuple(found["judged"])
        return EvaluationRequest(**{**found, "places": places, "passes": passes, "judged": judged})


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code."""
    (given,) = sys.argv[1:] if arguments is None else arguments
    folder = EvaluationFolder(Path(given))
    try:
        _run(folder)
        return int(ExitCode.FINISHED)
    except Exception as error:
        rank = int(os.environ.get("RANK", "0"))
        failure = Failure.of(error, rank, None)
        failure.write(folder.failure(rank))
        print(failure.detail, file=sys.stderr)
        return int(failure.code)


def _run(folder: EvaluationFolder) -> None:
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    from brt_dist.config.loading import load
    from brt_dist.parallel.start import joined

    config, request = load(folder.config).config, folder.read()
    with joined(config) as (layout, device):
        # after the device was chosen, because DeepSpeed picks its accelerator at import
        from brt_dist.export.open import open_weights
        from brt_dist.parallel.engine import build_engine
        from brt_dist.training.initial_weights import fill

        engine = build_engine(config, layout, device, blank=True)
        with open_weights(request.source, request.step, verify=False) as weights:
            fill(engine, weights)
        found = list(_scores(engine, request, _teller(folder) if layout.rank == 0 else lambda tokens: None))
        if layout.rank == 0:
            write_atomic(folder.results, json.dumps([score.to_json() for score in found]))
        engine.close()


def _scores(engine: "Engine", request: EvaluationRequest, on_tokens: Callable[[int], None]) -> "Iterator[Score]":
    """The score of each place in each pass."""
    from brt_dist.evaluation.engine_reading import score_on_ranks
    from brt_dist.evaluation.oracle_tally import oracle_of

    for place, judge in zip(request.places, request.judged, strict=True):
        oracle = oracle_of(engine.config.model) if judge else None
        with _opened(place, request.documents) as documents:
            for how in request.passes:
                watch = request.watch and how.use == "carried"
                yield score_on_ranks(engine, documents, how, watch, oracle, on_tokens)


@contextmanager
def _opened(place: str, first: int | None) -> "Iterator[Documents]":
    from brt_dist.data.dataset import Dataset
    from brt_dist.data.file_cache import CacheSettings, default_directory
    from brt_dist.data.in_memory import InMemoryDataset
    from brt_dist.data.subset import FirstDocuments

    with ExitStack() as stack:
        data: Any
        if place.endswith(".npz"):
            data = InMemoryDataset.load(Path(place))
        else:
            data = stack.enter_context(Dataset.open(place, CacheSettings(default_directory(), 10**10, 60.0)))
        yield data if first is None else FirstDocuments(data, first)


def _teller(folder: EvaluationFolder) -> Callable[[int], None]:
    """Records from time to time how many tokens were predicted so far."""
    total, last = 0, time.monotonic()

    def tell(tokens: int) -> None:
        nonlocal total, last
        total += tokens
        if time.monotonic() - last > _EVERY_SECONDS:
            last = time.monotonic()
            write_atomic(folder.progress, str(total))

    return tell


if __name__ == "__main__":
    sys.exit(main())
