"""Checks while a run trains (`run.guards`), and what happens when an attempt fails (`launch.recovery`)."""

from typing import Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from brt_dist.config.section import Section


class GuardsConfig(Section):
    """Checks while a run trains."""

    nonfinite: Literal["stop", "skip"] = Field(
        "stop",
        description="on a non-finite loss or gradient: stop the run as diverged, or skip this update and continue",
    )
    most_skips: PositiveInt = Field(10, description="more skips in a row than this end the run as diverged")
    spike_window: NonNegativeInt = Field(
        100, description="number of recent steps whose median spikes are measured against; 0: no spike detection"
    )
    spike_deviations: PositiveFloat = Field(
        20.0, description="a spike is more than this many median absolute deviations above the median"
    )
    on_spike: Literal["report", "stop"] = Field(
        "report", description="on a spike of the loss: report it, or stop the run as diverged"
    )
    replica_every: NonNegativeInt = Field(
        0, description="steps between comparisons of weights that several ranks hold (reads all weights once); 0: never"
    )
    on_drift: Literal["report", "stop"] = Field(
        "stop", description="if the copies of a weight differ in any bit: report it, or end the attempt"
    )
    straggler_every: NonNegativeInt = Field(50, description="steps between checks for slow ranks; 0: never")
    straggler_ratio: PositiveFloat = Field(
        1.5,
        gt=1.0,
        description="a rank is a straggler if its step takes more than this many times the median rank's",
    )
    state_bits: NonNegativeFloat = Field(
        0.001,
        description="warn that the model ignores its state if carrying it is worth fewer bits/token than this at the "
        "last evaluation, or at three in a row; 0: never",
    )
    collective_seconds: PositiveFloat = Field(
        600.0, description="timeout of collectives after the first step, in seconds"
    )


class RecoveryConfig(Section):
    """What the supervisor does when an attempt fails."""

    retries: NonNegativeInt = Field(
        3, description="maximum retries after a failure (ranks lost, hung or crashed); reset by each checkpoint"
    )
    pause_seconds: NonNegativeFloat = Field(5.0, description="pause before a retry; doubles each time, up to 60")
    min_nodes: PositiveInt | None = Field(
        None, description="continue on fewer nodes, down to this many; unset: wait for all launch.nodes"
    )
    node_wait_seconds: NonNegativeFloat = Field(
        120.0, description="how long to wait for lost nodes before continuing on fewer nodes"
    )
    diverged: Literal["stop", "skip", "lower"] = Field(
        "stop",
        description="after a divergence: stop, or roll back to a checkpoint and skip steps or lower the learning rate",
    )
    rollbacks: NonNegativeInt = Field(3, description="how many times a run may roll back after a divergence")
    skip_steps: PositiveInt = Field(
        1, description="diverged=skip: steps to skip, up to and including the one that diverged"
    )
    lower_factor: PositiveFloat = Field(
        0.5, lt=1.0, description="diverged=lower: factor for the learning rate from there on"
    )
    hang_factor: PositiveFloat = Field(
        20.0, gt=1.0, description="a run counts as hung after this many times the usual step time without a step"
    )
    hang_seconds: PositiveFloat = Field(120.0, description="shortest time without a step before a run counts as hung")
    slow_seconds: PositiveFloat = Field(
        1800.0, description="longest time for startup, for an evaluation, and for a save that training waits for"
    )
