"""A rank of the doctor: a rendezvous and a few all-reduces.  `python -m launch.doctor.allreduce FOLDER`.

Each rank leaves RANK.began and RANK.met in FOLDER, and rank 0 result.json, which shows who was missing.
"""

import json
import os
import sys
import time
from datetime import timedelta
from pathlib import Path

_REPEATS = 5
_BYTES = {"cpu": 8 << 20, "cuda": 256 << 20}


def main(folder: Path, kind: str, seconds: float) -> None:
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    (folder / f"{rank}.began").touch()
    import torch
    import torch.distributed as dist

    if kind == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if kind == "cuda" else "gloo", timeout=timedelta(seconds=seconds))
    dist.barrier()
    (folder / f"{rank}.met").touch()
    buffer = torch.ones(_BYTES[kind] // 4, device=kind)
    dist.all_reduce(buffer)  # the first one sets up connections
    if float(buffer[0]) != world:
        raise SystemExit(f"rank {rank}: the sum of {world} ones is {float(buffer[0])}")
    times = []
    for _ in range(_REPEATS):
        dist.barrier()
        begin = time.perf_counter()
        dist.all_reduce(buffer)
        if kind == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    if rank == 0:
        # What each rank must send and receive in a ring, whatever the algorithm: comparable between world sizes.
        moved = 2 * (world - 1) / world * _BYTES[kind]
        result = {"seconds": min(times), "bytes": _BYTES[kind], "bytes_per_second": moved / min(times)}
        new = folder / "result.new"
        new.write_text(json.dumps(result))
        new.rename(folder / "result.json")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], float(sys.argv[3]))
