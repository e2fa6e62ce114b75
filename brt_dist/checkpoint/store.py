"""The checkpoints of a run, as the training loop uses them: save, resume from the newest, remove old ones."""

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, replace
from typing import Any

import torch.distributed as dist

from brt_dist.checkpoint.crew import Crew
from brt_dist.checkpoint.loader import Checkpoint, open_newest
from brt_dist.checkpoint.manifest import Manifest, folder_name, step_of
from brt_dist.checkpoint.retention import score, to_remove, without_memory
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
    """The checkpoints of a run.  Its methods are collective.

    Args:
        storage: where checkpoints are saved.
        config: the run's config.
        layout: of this rank.
        dataset: digest of the training data.
        report: called on rank 0 with a message about each damaged checkpoint that is skipped.
        tokenizer: sha256 of the training data's tokenizer; empty: unknown.

    Raises:
        PlatformError: (on rank 0) another run is saving to the same place.
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
            self._claim.enter_context(storage.claimed(report))
        self._saver = Saver(storage, Crew(layout, config.run.checkpoint_seconds), self._remove_old)

    def save(
        self,
        step: int,
        tokens: int,
        cursor: Mapping[str, Any],
        evaluations: Mapping[str, float],
        engine: Engine,
        left_out: bool = False,
    ) -> float:
        """Start to save the state after step `step`.

        Args:
            step: the last finished step.
            tokens: tokens trained on so far.
            cursor: of the next step, as JSON values.
            evaluations: bits/token after this step by `DATASET/MEMORY`.
            engine: whose state to save.
            left_out: whether a due evaluation was skipped (see `Manifest`).

        Returns:
            Seconds that training waited.

        Raises:
            CheckpointError: the previous save failed.
        """
        manifest = Manifest(
            step=step,
            updates=engine.updates,
            tokens=tokens,
            cursor=dict(cursor),
            evaluations={} if left_out else dict(evaluations),  # no score is computed from only some of them
            # without the tracking URI, which may contain a password: others may read checkpoints
            config=self._config.model_dump(mode="json", exclude={"run": {"tracking"}}),
            dataset=self._dataset,
            versions=library_versions(),
            saved_by=self._layout_fields(),
            files=(),
            tensors={},
            time=time.time(),
            tokenizer=self._tokenizer,
            mask_version=engine.mask_version,
            left_out=left_out,
        )
        return self._saver.save(manifest, engine.pieces())

    def complete(self, step: int, evaluations: Mapping[str, float]) -> None:
        """Add to a saved checkpoint the evaluation that it lacked.

        Args:
            step: of the checkpoint.
            evaluations: bits/token after this step by `DATASET/MEMORY`.
        """
        if self._layout.rank != 0:
            return
        name = folder_name(step)
        try:
            whole = replace(read_manifest(self._storage, name), evaluations=dict(evaluations), left_out=False)
            self._storage.shrink(name, whole.dump(), ())
        except (OSError, CheckpointError) as error:
            self._report(f"could not add the evaluation to {name}: {error}")

    def finished(self) -> list[Saved]:
        """Saves that have finished since the last call.

        Raises:
            CheckpointError: a save failed.
        """
        return self._saver.finished()

    def wait(self) -> None:
        """Wait for the save in progress.

        Raises:
            CheckpointError: it failed.
        """
        self._saver.wait()

    def open_newest(self) -> Checkpoint | None:
        """Open the newest complete checkpoint; damaged ones are skipped and reported.

        Returns:
            The checkpoint; None if there are no checkpoints.

        Raises:
            CheckpointError: none of them is complete, or resuming from it would change the run.
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
        """Wait for the save in progress, and release the storage."""
        self._saver.close()
        self._claim.close()

    def is_new_dataset(self, manifest: Manifest) -> bool:
        """Whether the training data changed since the checkpoint (see `run.allow`), so that streams start over."""
        return manifest.dataset != self._dataset

    def _check_belongs(self, manifest: Manifest) -> None:
        saved = recorded(manifest.config, f"{self._storage}/{folder_name(manifest.step)}")
        allowed = (*self._config.run.allow, "data.dataset", "data.mixture")  # a folder may move: the digest decides
        found = [str(change) for change in changes(flatten(saved), flatten(self._config), allowed)]
        if self.is_new_dataset(manifest) and not {"data.dataset", "data.mixture"} & set(self._config.run.allow):
            found.append(
                f"data.dataset: digest {manifest.dataset[:12]} in the run, {self._dataset[:12]} now: the documents or "
                "the tokenizer differ"
            )
        if manifest.tokenizer and self._tokenizer and manifest.tokenizer != self._tokenizer:
            found.append(
                f"data.dataset: the model was trained with tokenizer {manifest.tokenizer[:12]}, but the data was built "
                f"with {self._tokenizer[:12]}; run.allow cannot change that: rebuild the data with the run's tokenizer"
            )
        if found:
            raise CheckpointError(
                f"resuming from {self._storage}/{folder_name(manifest.step)} would change the run:\n"
                + "\n".join(f"  - {text}" for text in found)
                + "\nrestore these settings, add them to run.allow to change them anyway, or use another run.directory"
            )

    def _layout_fields(self) -> dict[str, Any]:
        fields = {key: value for key, value in asdict(self._layout).items() if key not in ("rank", "streams")}
        parallel = self._config.parallel
        return fields | {"zero_stage": parallel.zero_stage, "sequence_parallel": parallel.sequence_parallel}

    def _remove_old(self, step: int) -> None:
        found: dict[int, Manifest] = {}
        for name in self._storage.names():
            try:
                found[step_of(name) or 0] = read_manifest(self._storage, name)
            except CheckpointError:
                continue  # damaged: kept for inspection
        scores = {number: score(manifest.evaluations) for number, manifest in found.items()}
        for old in to_remove(scores, self._config.run, protected=(step,)):
            self._storage.remove(folder_name(old))
            del found[old]
        for old in without_memory(found, self._config.run, protected=(step,)):
            if found[old].has_memory:
                rest = found[old].without_memory()
                gone = {entry.name for entry in found[old].files} - {entry.name for entry in rest.files}
                self._storage.shrink(folder_name(old), rest.dump(), sorted(gone))

    def _gather(self, problem: str | None) -> list[str | None]:
        problems: list[str | None] = [None] * self._layout.world_size
        dist.all_gather_object(problems, problem)
        return problems
