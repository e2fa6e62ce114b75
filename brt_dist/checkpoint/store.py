"""Save and load the checkpoints of a run.

A checkpoint is a folder `step_SSSSSSSS` with one safetensors file for each rank and a manifest.  It is written under a
hidden name, synced and renamed, and only then does `latest` move: a reader never sees half of one.
"""

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from brt_dist.checkpoint.manifest import (
    LATEST,
    MANIFEST,
    FileEntry,
    Manifest,
    check_file,
    folder_name,
    newest_first,
)
from brt_dist.config.schema import Config
from brt_dist.errors import CheckpointError
from brt_dist.files import sync_directory, write_atomic
from brt_dist.parallel.layout import Layout

VERSIONS = ("torch", "deepspeed", "megatron-core", "numpy", "brt_dist")


class CheckpointStore:
    """The folder `checkpoints` of a run, used by all ranks together.

    Args:
        folder: RUN/checkpoints.
        config: the run's config.
        layout: this rank's.
        dataset: digest of the training dataset.
        report: called on rank 0 with a line for the log when a damaged checkpoint is passed over.
    """

    def __init__(
        self, folder: Path, config: Config, layout: Layout, dataset: str, report: Callable[[str], None]
    ) -> None:
        self._folder = folder
        self._config = config
        self._layout = layout
        self._dataset = dataset
        self._report = report

    def save(self, step: int, tokens: int, cursor: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> Path:
        """Write a checkpoint after `step` finished steps.  Collective; returns its folder."""
        final = self._folder / folder_name(step)
        draft = self._folder / f".{final.name}.draft"
        self._on_first_rank(lambda: self._new_draft(draft))
        path = draft / _file_name(self._layout.rank)
        save_file({name: _on_host(tensor) for name, tensor in tensors.items()}, path)
        with open(path, "rb") as file:
            os.fsync(file.fileno())
        entries: list[FileEntry | None] = [None] * self._layout.world_size
        dist.all_gather_object(entries, FileEntry.of(path))
        manifest = Manifest(
            step=step,
            tokens=tokens,
            cursor=dict(cursor),
            layout=self._layout_fields(),
            config=self._config.model_dump(mode="json"),
            dataset=self._dataset,
            versions={name: version(name) for name in VERSIONS},
            files=tuple(entry for entry in entries if entry is not None),
        )
        self._on_first_rank(lambda: self._publish(draft, final, manifest))
        return final

    def load_newest(self) -> tuple[Manifest, dict[str, torch.Tensor]] | None:
        """The newest checkpoint that is whole, and this rank's tensors (on the host); None where there is none.

        Collective.  A damaged one is named in the log and the one before it is used.

        Raises:
            CheckpointError: there are checkpoints and none can be used, or it belongs to another layout or dataset.
        """
        folders = newest_first(self._folder)
        for folder in folders:
            problem, loaded = self._try(folder)
            problems: list[str | None] = [None] * self._layout.world_size
            dist.all_gather_object(problems, problem)
            found = [text for text in problems if text]
            if not found:
                return loaded
            if self._layout.rank == 0:
                self._report(f"checkpoint {folder.name} is not used: {found[0]}")
        if folders:
            raise CheckpointError(
                f"none of the {len(folders)} checkpoints in {self._folder} can be used; see the log for the reasons. "
                "Move the folder away to start the run anew."
            )
        return None

    def _try(self, folder: Path) -> tuple[str | None, tuple[Manifest, dict[str, torch.Tensor]] | None]:
        try:
            manifest = Manifest.read(folder)
            self._check_belongs(folder, manifest)
            entry = manifest.files[self._layout.rank]
            check_file(folder, entry)
            return None, (manifest, load_file(folder / entry.name))
        except _NotThisRun:
            raise
        except (CheckpointError, OSError, IndexError) as error:
            return str(error), None

    def _check_belongs(self, folder: Path, manifest: Manifest) -> None:
        if manifest.dataset != self._dataset:
            raise _NotThisRun(
                f"{folder} was trained on another dataset (digest {manifest.dataset[:12]}, data.dataset now has "
                f"{self._dataset[:12]}). Use that dataset, or another run.directory."
            )
        now = self._layout_fields()
        changed = [
            f"{key} {manifest.layout.get(key)} -> {now[key]}" for key in now if manifest.layout.get(key) != now[key]
        ]
        if changed:
            raise _NotThisRun(
                f"{folder} was saved on another layout ({', '.join(changed)}). This version resumes on the layout that "
                "saved: set these values back, or use another run.directory."
            )

    def _layout_fields(self) -> dict[str, Any]:
        parallel = self._config.parallel
        fields = asdict(self._layout)
        fields.pop("rank")
        kinds = {"zero_stage": parallel.zero_stage, "sequence_parallel": parallel.sequence_parallel}
        return fields | kinds | {"precision": self._config.run.precision}

    def _new_draft(self, draft: Path) -> None:
        for left_over in self._folder.glob(".step_*"):
            shutil.rmtree(left_over)
        draft.mkdir(parents=True)

    def _publish(self, draft: Path, final: Path, manifest: Manifest) -> None:
        write_atomic(draft / MANIFEST, manifest.dump())
        if final.exists():  # a step that was run again after a resume
            replaced = self._folder / f".{final.name}.replaced"
            final.rename(replaced)
            draft.rename(final)
            shutil.rmtree(replaced)
        else:
            draft.rename(final)
        sync_directory(self._folder)
        write_atomic(self._folder / LATEST, final.name + "\n")
        for old in newest_first(self._folder)[self._config.run.keep_checkpoints :]:
            # without its manifest a folder is no checkpoint: a removal that is cut short leaves nothing half-valid
            (old / MANIFEST).unlink()
            shutil.rmtree(old)

    def _on_first_rank(self, action: Callable[[], None]) -> None:
        """Run `action` on rank 0 while the others wait; an error there is an error everywhere."""
        error: list[str | None] = [None]
        if self._layout.rank == 0:
            try:
                action()
            except OSError as problem:
                error = [f"cannot write the checkpoint: {problem}"]
        dist.broadcast_object_list(error, src=0)
        if error[0]:
            raise CheckpointError(error[0])


class _NotThisRun(CheckpointError):
    """The checkpoint is sound but belongs elsewhere: no older one would do better."""


def _file_name(rank: int) -> str:
    return f"rank_{rank:05d}.safetensors"


def _on_host(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()
