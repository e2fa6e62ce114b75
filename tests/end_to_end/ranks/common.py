"""Shared by the small programs that stand in for the worker.  Only the standard library and torch.distributed."""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any


class Rank:
    """Its place from torch's environment variables, its run directory from the command line, like the worker."""

    def __init__(self) -> None:
        parser = argparse.ArgumentParser()
        parser.add_argument("run", type=Path)
        parser.add_argument("--attempt", type=int, required=True)
        options = parser.parse_args()
        self.run, self.attempt = options.run, options.attempt
        self.rank, self.world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        self.folder = self.run / "attempts" / f"{self.attempt:03d}"
        self.leave_pid("rank", os.getpid())

    def leave_pid(self, what: str, pid: int) -> None:
        """For the test, which may look at any moment: a file that exists is complete."""
        new = self.folder / f"{what}_{self.rank}.new"
        new.write_text(str(pid))
        new.rename(new.with_suffix(".pid"))

    def event(self, event: str, **fields: Any) -> None:
        if self.rank == 0:
            with open(self.run / "metrics.jsonl", "a") as file:
                file.write(json.dumps({"event": event, "time": time.time(), "attempt": self.attempt, **fields}) + "\n")

    def leave_error(self, kind: str, message: str, exit_code: int) -> None:
        report = {"rank": self.rank, "host": "here", "time": time.time(), "type": kind, "message": message}
        path = self.folder / f"rank_{self.rank:03d}.error.json"
        path.write_text(json.dumps({**report, "exit_code": exit_code, "traceback": ""}))


def meet() -> None:
    """Join all ranks over gloo, at the address that the launcher chose."""
    import torch.distributed as dist

    dist.init_process_group("gloo")


def part() -> None:
    """Leave the others; gloo's threads sometimes abort a process that ends without this."""
    import torch.distributed as dist

    dist.barrier()
    dist.destroy_process_group()


def sum_of_ranks(rank: int) -> float:
    import torch
    import torch.distributed as dist

    value = torch.tensor([float(rank + 1)])
    dist.all_reduce(value)
    return float(value)
