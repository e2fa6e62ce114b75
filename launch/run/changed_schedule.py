"""What a changed length of the run means for its learning rate."""

from pathlib import Path

from brt_dist.config.loading import load
from brt_dist.config.schema import Config
from brt_dist.optim.learning_rate import learning_rate
from brt_dist.run_directory import RunDirectory
from launch.run.history import History


def changed_schedule(run: Path, config: Config) -> str | None:
    """A note that a resumed run's learning rate changes, because run.steps decides where its schedule ends.

    Args:
        run: its directory, with the config so far.
        config: the new config.
    """
    if not RunDirectory(run).is_run or (step := History.read(run).saved_step) == 0:
        return None
    before = load(RunDirectory(run).config).config
    old, new = (learning_rate(step + 1, each.run.steps, each.optimizer) for each in (before, config))
    if before.run.steps == config.run.steps or old == new:
        return None
    return (
        f"run.steps was {before.run.steps} and is {config.run.steps}: optimizer.schedule={config.optimizer.schedule} "
        f"depends on it, so the learning rate of step {step + 1} is {new:.3g}, not {old:.3g}"
    )
