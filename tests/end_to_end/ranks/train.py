"""Two steps of all-reduce per rank, with the events of a run; continues where the last attempt stopped."""

import sys

from common import Rank, meet, part, sum_of_ranks

rank = Rank()
done = rank.run / "done"
start = int(done.read_text()) if done.exists() else 0
meet()
rank.event("attempt", world_size=rank.world_size, layout={"data": rank.world_size}, start_step=start)
for step in range(start + 1, start + 3):
    total = sum_of_ranks(rank.rank)
    rank.event("step", step=step, loss=total, bits_per_token=total / step, tokens=step * 8, tokens_per_second=8.0)
rank.event("evaluation", step=start + 2, dataset="train", memory="carried", loss=1.0, bits_per_token=1.5, tokens=8)
rank.event("evaluation", step=start + 2, dataset="train", memory="cleared", loss=1.1, bits_per_token=1.75, tokens=8)
rank.event("checkpoint", step=start + 2, path=f"checkpoints/step_{start + 2:08d}", seconds=0.1)
rank.event("end", status="finished", exit_code=0, step=start + 2)
if rank.rank == 0:
    done.write_text(str(start + 2))
print("the sum is", total)
part()
sys.exit(0)
