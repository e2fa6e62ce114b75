"""A rank of a calibration, started as by torchrun: `python -m brt_dist.planning.calibration.rank FOLDER KIND SECONDS`.

All ranks of the machine measure at once, as in training.  Rank 0 prints one JSON object per line: what is measured
next, and finally the rates.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

_STEPS = 3  # times as long as other measurements


def main(folder: Path, kind: str, seconds: float) -> None:
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    import torch.distributed as dist

    from brt_dist.parallel.device import choose
    from brt_dist.parallel.layout import Layout, finalize, initialize
    from brt_dist.planning.calibration.fitting import SHAPES, step_config, takes_tensor
    from brt_dist.planning.calibration.steps import measured_step

    device = choose(kind, int(os.environ["LOCAL_RANK"]))
    layout = Layout(tensor=1, pipeline=1, data=ranks, micro_batch=1, streams=ranks, rank=rank)
    initialize(layout, device, 60.0, dist.FileStore(str(folder / "store"), ranks))
    try:
        found = measured(folder, layout, device, seconds)
    finally:
        finalize()
    if takes_tensor(kind, ranks):
        tell({"now": "a step of tensor parallel ranks"})
        config = step_config(kind, ranks, SHAPES[kind][0], tensor=ranks)
        initialize(Layout.of(config, rank), device, 60.0, dist.FileStore(str(folder / "tensor"), ranks))
        try:
            found["tensor_step"] = measured_step(config, SHAPES[kind][0], rank, device, _STEPS * seconds)
        finally:
            finalize()
    tell(found)


def measured(folder: Path, layout: Any, device: Any, seconds: float) -> dict[str, Any]:
    """The keys of a device that can be measured.  Collective."""
    from brt_dist.planning.calibration import computing
    from brt_dist.planning.calibration.clock import Clock
    from brt_dist.planning.calibration.fitting import MIXERS, SHAPES, step_config
    from brt_dist.planning.calibration.links import links
    from brt_dist.planning.calibration.steps import measured_step

    ranks = layout.world_size
    clock, sizes = Clock(device, seconds), computing.SIZES[device.kind]
    products = {}
    for precision in computing.DTYPES:
        tell({"now": f"matrix products, {precision}"})
        products[precision] = computing.product_rates(device, clock, sizes, precision)
    tell({"now": "memory"})
    memory_rate, host_rate = computing.memory_rate(device, clock, sizes), computing.host_rate(device, clock, sizes)
    tell({"now": "attention"})
    ahead, back, flops = computing.attention_seconds(device, clock, sizes)
    tell({"now": "the host"})
    launch = computing.launch_seconds(device, clock, sizes)
    tell({"now": "the loss"})
    best = {precision: max(rates.values()) for precision, rates in products.items()}
    peak, rates = best[sizes.precision], products[sizes.precision]
    of_logits = computing.logits_passes(device, clock, sizes, rates[sizes.width], launch, memory_rate)
    tell({"now": "steps of training"})
    steps = []
    for shape in SHAPES[device.kind]:
        config = step_config(device.kind, ranks, shape)
        steps.append(measured_step(config, shape, layout.rank, device, _STEPS * seconds))
        clock.probe.look()
    few, of_mixers = SHAPES[device.kind][-1], {}
    for mixer in MIXERS:
        tell({"now": f"a step with {mixer}"})
        config = step_config(device.kind, ranks, few, mixer)
        of_mixers[mixer] = measured_step(config, few, layout.rank, device, seconds, fewest=2)
        clock.probe.look()
    found = {
        "name": device.name,
        "memory": device.memory_bytes(),
        "peak_flops": best,
        "matmul_efficiency": 1.0,
        "narrow_products": {side: min(rate / peak, 1.0) for side, rate in rates.items()},
        "attention_efficiency": min(3 * flops / (ahead + back) / peak, 1.0),
        "attention_forward": ahead / (ahead + back),
        "logits_passes": of_logits,
        "memory_rate": memory_rate,
        "host_rate": host_rate,
        "launch_seconds": launch,
        "steps": steps,
        "mixer_steps": of_mixers,
    }
    if ranks > 1:
        tell({"now": f"links between {ranks} ranks"})
        between = links(device, clock)
        found |= {"link_seconds": between.seconds, "link_rate": between.rate, "link_shares": between.shares}
    tell({"now": "the disk"})
    return {**found, "disk_rate": ranks * disk_rate(folder), "disturbed": clock.probe.disturbance()}


def disk_rate(folder: Path, size: int = 1 << 27) -> float:
    """Bytes a second that this rank writes, synced, while the others also write."""
    block = os.urandom(1 << 22)
    path = folder / f"written-{os.environ['RANK']}"
    begin = time.perf_counter()
    with open(path, "wb") as file:
        for _ in range(size // len(block)):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    seconds = time.perf_counter() - begin
    path.unlink()
    return size / seconds


def tell(what: dict[str, Any]) -> None:
    if os.environ["RANK"] == "0":
        print(json.dumps(what), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], float(sys.argv[3]))
