"""Cells of a comparison: each is a model that is trained and measured, in a file that grows cell by cell."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

from brt_dist.files import write_atomic

if TYPE_CHECKING:
    from brt_dist.parallel.device import Device

Cell = dict[str, Any]
"""A cell's key and results."""

Train = Callable[[Cell, "Device"], Cell]
"""Trains the cell of a key and returns it; sent to another process, so a function of a module or a partial of one."""


class Cells:
    """The cells in a file.

    Args:
        file: JSON, a list of cells; it need not exist yet.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.cells: list[Cell] = json.loads(file.read_text()) if file.exists() else []

    def find(self, key: Cell) -> Cell | None:
        """The cell that has all of `key`."""
        return next((cell for cell in self.cells if key.items() <= cell.items()), None)

    def add(self, cell: Cell) -> None:
        """Write a cell down."""
        self.cells.append(cell)
        write_atomic(self.file, json.dumps(self.cells, indent=1) + "\n")

    def replace(self, task: str, cells: list[Cell]) -> None:
        """Write down all cells of a task in place of those that there were."""
        self.cells = [cell for cell in self.cells if cell["task"] != task] + cells
        write_atomic(self.file, json.dumps(self.cells, indent=1) + "\n")

    def complete(self, keys: Sequence[Cell], train: Train) -> Iterator[Cell]:
        """Train those of `keys` that are missing, one after the other in a process of their own, which has its own
        peak of memory; yield each once it is written down.  It ends early if the process does."""
        for cell in _trained([key for key in keys if self.find(key) is None], train):
            self.add(cell)
            yield cell


def _trained(keys: list[Cell], train: Train) -> Iterator[Cell]:
    if not keys:
        return
    context = get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(theirs, keys, train), daemon=True)
    process.start()
    theirs.close()
    try:
        for _ in keys:
            yield ours.recv()
    except EOFError:
        return
    finally:
        process.join()


def _serve(connection: Connection, keys: list[Cell], train: Train) -> None:
    import torch

    from brt_dist.parallel.layout import single_process

    Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    with single_process() as device:
        for key in keys:
            connection.send(train(key, device))
    connection.close()


def _end_with_parent() -> None:
    """A parent that is killed cannot end its child, which would hold its run and keep the next one out."""
    if parent := parent_process():
        parent.join()
    os._exit(1)
