"""How much of a run failures leave, and the best interval between checkpoints: `python -m benchmarks.goodput`.

The tables of docs/scaling.md, for one cost of saves and restarts on all sizes.
"""

from brt_dist.planning.scaling import SIZES
from brt_dist.planning.simulator.failure_rates import RATES
from brt_dist.planning.simulator.goodput import Saving, best_interval, daly, simulate_run, young

SAVING = Saving(stall=5.0, write=60.0, restart=300.0)
_DAY = 24.0


def shares() -> list[str]:
    """Goodput and GPU-hours lost in a day, by GPUs and rate of failures, in Markdown."""
    lines = [f"| GPUs | {' | '.join(RATES)} |", f"| ---: |{' ---: |' * len(RATES)}"]
    for gpus in SIZES:
        cells = []
        for rate in RATES.values():
            between = rate.hours_between(gpus) * 3600
            run = simulate_run(max(daly(SAVING.stall, between), SAVING.write), SAVING, between)
            cells.append(f"{run.trained:.1%}, {_short(gpus * _DAY * (1 - run.trained))}")
        lines.append(f"| {gpus:,} | {' | '.join(cells)} |")
    return lines


def _short(number: float) -> str:
    """With two digits."""
    return f"{float(f'{number:.2g}'):,g}"


def intervals() -> list[str]:
    """Seconds between saves after Young and Daly, and with the best simulated goodput, in Markdown."""
    lines = ["| GPUs | hours between failures | stall s | Young s | Daly s | simulated s |", f"|{' ---: |' * 6}"]
    rate = RATES["llama3"]
    for gpus in (512, 4096, 16384):
        for stall in (1.0, 30.0, 300.0):
            hours = rate.hours_between(gpus)
            found = [young(stall, hours * 3600), daly(stall, hours * 3600)]
            found.append(best_interval(Saving(stall, restart=SAVING.restart), hours * 3600))
            lines.append(f"| {gpus:,} | {hours:.1f} | {stall:g} | {' | '.join(f'{one:,.0f}' for one in found)} |")
    return lines


if __name__ == "__main__":
    print("\n".join([*shares(), "", *intervals()]))
