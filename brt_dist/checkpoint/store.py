"""The checkpoints of a run, as the training loop uses them: save, go on from the newest, keep the right ones."""

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

import torch.distributed as dist

from brt_dist.checkpoint.loader import Checkpoint, open_newest
from brt_dist.checkpoint.manifest import Manifest, folder_name, step_of
from brt_dist.checkpoint.retention import score, to_remove
from brt_dist.checkpoint.saver import Saved, Saver
from brt_dist.checkpoint.storage import Storage
from brt_dist.checkpoint.verification import read_manifest
from brt_dist.config.changes import changes
from brt_dist.config.loading import flatten, recorded
from brt_dist.config.schema import Config
from brt_dist.errors import CheckpointError
from brt_dist.parallel.engine import Engine
from brt_dist.parallel.layout import Layout
from brt_dist.versions import library_versions


class CheckpointStore:
    """Used by all ranks together.

    Args:
        storage: where checkpoints are kept.
        config: the run's config.
        layout: this rank's.
        dataset: digest of the training data.
        tokenizer: sha256 of the training data's tokenizer; empty: not known.
        report: called on rank 0 with a line for the log when a damaged checkpoint is passed over.

    Raises:
        PlatformError: (on rank 0) another run saves to the same place.
    """

    def __init__(
        self,
        storage: Storage,
        config: Config,
        layout: Layout,
        dataset: str,
        report: Callable[[str], None],
        tokenizer: str = "",
    ) -> None:
        self._storage, self._config, self._layout = storage, config, layout
        self._dataset, self._report, self._tokenizer = dataset, report, tokenizer
        self._claim = ExitStack()
        if layout.rank == 0:
            self._claim.enter_context(storage.claimed())
        self._saver = Saver(storage, layout.rank, layout.world_size, self._remove_old)

    def save(
        self, step: int, tokens: int, cursor: Mapping[str, Any], evaluations: Mapping[str, float], engine: Engine
    ) -> float:
        """Begin to save the state after `step` finished steps; returns the seconds for which training waited.

        Raises:
            CheckpointError: the save before failed.
        """
        manifest = Manifest(
            step=step,
            updates=engine.updates,
            tokens=tokens,
            cursor=dict(cursor),
            evaluations=dict(evaluations),
            # not where it is tracked: that may hold a password, and others read checkpoints
            config=self._config.model_dump(mode="json", exclude={"run": {"tracking"}}),
            dataset=self._dataset,
            versions=library_versions(),
            saved_by=self._layout_fields(),
            files=(),
            tensors={},
            time=time.time(),
            tokenizer=self._tokenizer,
        )
        return self._saver.save(manifest, engine.pieces())

    def finished(self) -> list[Saved]:
        """Saves done since the last call.  CheckpointError: one failed."""
        return self._saver.finished()

    def wait(self) -> None:
        """Until the save under way is done.  CheckpointError: it failed."""
        self._saver.wait()

    def open_newest(self) -> Checkpoint | None:
        """The newest checkpoint that is whole; none where there is none.  A damaged one is named in the log.

        Raises:
            CheckpointError: none of them is whole, or going on from it would make another run.
        """
        return open_newest(
            self._storage,
            self._layout.rank,
            self._layout.world_size,
            self._gather,
            self._check_belongs,
            lambda text: self._report(text) if self._layout.rank == 0 else None,
        )

    def close(self) -> None:
        """Wait for the save under way, and let others save here."""
        self._saver.close()
        self._claim.close()

    def is_new_dataset(self, manifest: Manifest) -> bool:
        """Whether the run goes on with other data, which was allowed: the streams begin anew."""
        return manifest.dataset != self._dataset

    def _check_belongs(self, manifest: Manifest) -> None:
        saved = recorded(manifest.config)
        allowed = (*self._config.run.allow, "data.dataset", "data.mixture")  # a folder may move: the digest tells
        found = [str(change) for change in changes(flatten(saved), flatten(self._config), allowed)]
        if self.is_new_dataset(manifest) and not {"data.dataset", "data.mixture"} & set(self._config.run.allow):
            found.append(
                f"data.dataset: digest {manifest.dataset[:12]} in the run, {self._dataset[:12]} now: other documents "
                "or another tokenizer"
            )
        if manifest.tokenizer and self._tokenizer and manifest.tokenizer != self._tokenizer:
            found.append(
                f"data.dataset: the model was trained on ids of tokenizer {manifest.tokenizer[:12]}, the data now has "
                f"those of {self._tokenizer[:12]}; no setting allows that: build the data with the run's tokenizer"
            )
        if found:
            raise CheckpointError(
                f"{self._storage}/{folder_name(manifest.step)} cannot be gone on from without changing the run:\n"
                + "\n".join(f"  - {text}" for text in found)
                + "\nput these back, name those that are wanted in run.allow, or set another run.directory"
            )

    def _layout_fields(self) -> dict[str, Any]:
        fields = {key: value for key, value in asdict(self._layout).items() if key not in ("rank", "streams")}
        parallel = self._config.parallel
        return fields | {"zero_stage": parallel.zero_stage, "sequence_parallel": parallel.sequence_parallel}

    def _remove_old(self, step: int) -> None:
        scores: dict[int, float | None] = {}
        for name in self._storage.names():
            try:
                found = read_manifest(self._storage, name).evaluations
            except CheckpointError:
                continue  # damaged: kept for whoever wants to look
            scores[step_of(name) or 0] = score(found)
        for old in to_remove(scores, self._config.run, protected=(step,)):
            self._storage.remove(folder_name(old))

    def _gather(self, problem: str | None) -> list[str | None]:
        problems: list[str | None] = [None] * self._layout.world_size
        dist.all_gather_object(problems, problem)
        return problems
