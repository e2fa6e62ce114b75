"""What is watched while a run trains (`run.guards`), and what follows when an attempt fails (`launch.recovery`)."""

from typing import Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from brt_dist.config.section import Section


class GuardsConfig(Section):
    """Watched by every rank, at every step."""

    nonfinite: Literal["stop", "skip"] = Field(
        "stop", description="at a gradient that is not finite: end as diverged, or leave out this update and go on"
    )
    most_skips: PositiveInt = Field(10, description="updates left out in a row after which the run is diverged")
    spike_window: NonNegativeInt = Field(100, description="steps whose losses and norms tell what is usual; 0: off")
    spike_deviations: PositiveFloat = Field(
        20.0, description="a spike lies so many median absolute deviations above the median of the window"
    )
    on_spike: Literal["report", "stop"] = Field(
        "report", description="at a spike of the loss: tell, or end as diverged"
    )
    straggler_every: NonNegativeInt = Field(50, description="steps between looks for a rank that is slow; 0: never")
    straggler_ratio: PositiveFloat = Field(
        1.5, gt=1.0, description="a straggler works so many times as long on a step as the median rank"
    )
    collective_seconds: PositiveFloat = Field(
        600.0, description="longest wait of a rank for the others once the first step is done"
    )


class RecoveryConfig(Section):
    """What the supervisor does when an attempt ends badly."""

    retries: NonNegativeInt = Field(
        3, description="attempts more when ranks are lost, hang or crash; a new checkpoint gives all of them back"
    )
    pause_seconds: NonNegativeFloat = Field(5.0, description="before the next attempt; doubled each time, up to 60")
    min_nodes: PositiveInt | None = Field(
        None, description="go on with fewer nodes, but not fewer than this; none: wait for as many as launch.nodes"
    )
    node_wait_seconds: NonNegativeFloat = Field(120.0, description="wait for lost nodes before going on with fewer")
    diverged: Literal["stop", "skip", "lower"] = Field(
        "stop", description="after a divergence: end; or from the last checkpoint without those steps, or slower"
    )
    rollbacks: NonNegativeInt = Field(3, description="how often a run may go back after a divergence")
    skip_steps: PositiveInt = Field(1, description="skip: steps that are left out, the last is the one that diverged")
    lower_factor: PositiveFloat = Field(0.5, lt=1.0, description="lower: the learning rate from there on, as a share")
    hang_factor: PositiveFloat = Field(20.0, gt=1.0, description="a run hangs after so many times its usual step time")
    hang_seconds: PositiveFloat = Field(120.0, description="but not before this time without a step")
    slow_seconds: PositiveFloat = Field(
        1800.0, description="longest time to the first step, of an evaluation, and of a save that is waited for"
    )
