"""What cannot fit is refused before anything starts, with the figure and what fits; `parallel: auto` finds a layout."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from brt_dist.config.loading import dump, load
from brt_dist.config.rules import check
from brt_dist.errors import ConfigError
from brt_dist.planning.devices import device_spec
from brt_dist.planning.layout_plan import Planner
from launch.cli import main
from launch.doctor.fitting import device_of, laid_out, refuse_oversize
from tests.datasets import make_dataset
from tests.unit.planning.recipes import EXAMPLES, recipe

H100 = "launch.gpu_kind=h100"
LARGE = ("model.layers=80", "model.width=8192", "model.heads=64", "model.vocab_size=32000", "data.dataset=unused")

FULL = (H100, "parallel.tensor=1", "parallel.data=64", "parallel.micro_batch=8", "parallel.recompute=none")
FULL += ("parallel.sequence_parallel=false",)


def small(*overrides: str) -> Any:
    return load("run: {directory: runs/a, steps: 2000}", ["data.dataset=unused", "model.vocab_size=512", *overrides])


def test_a_large_model_is_refused_on_this_machine_with_the_figure() -> None:
    config = small(*LARGE, "run.device=cpu", "data.streams=1").config
    check(config)
    needed = Planner(config, device_spec("cpu")).memory(config.parallel)[0].device
    with pytest.raises(ConfigError, match="this run does not fit") as refused:
        refuse_oversize(config)
    assert f"{needed / 1e9:,.1f} GB" in str(refused.value) and "run.allow_oversize=true" in str(refused.value)
    refuse_oversize(small(*LARGE, "run.device=cpu", "data.streams=1", "run.allow_oversize=true").config)


def test_a_rank_that_needs_more_than_a_gpu_is_refused_and_the_nearest_layout_fits() -> None:
    config = recipe("scale_7b", *FULL)
    with pytest.raises(ConfigError, match=r"NVIDIA H100 80GB HBM3 has 80\.0 GB") as refused:
        refuse_oversize(config)
    nearest = str(refused.value).split("nearest: ")[1].split(", or run.allow")[0]
    assert nearest.startswith("parallel.")
    refuse_oversize(recipe("scale_7b", *FULL, *nearest.split()))


def test_too_few_devices_are_told_with_a_number_that_is_enough() -> None:
    config = recipe("scale_70b", H100, "parallel.tensor=2", "parallel.pipeline=1", "parallel.data=1", "launch.nodes=1",
                    "data.streams=64")  # fmt: skip
    with pytest.raises(ConfigError, match=r"nearest: \d+ devices with parallel.tensor="):
        refuse_oversize(config)


def test_gpus_of_other_nodes_are_taken_for_the_largest_known() -> None:
    config = recipe("scale_7b", "launch.backend=slurm", "run.device=cuda")
    device = device_of(config)
    assert device is not None and device.memory == max(device_spec(name).memory for name in ("b200", "mi300x"))
    assert device_of(recipe("scale_7b", "launch.backend=slurm", "run.device=cpu")) is None
    assert device_of(small("run.device=cpu").config).name == "cpu"  # type: ignore[union-attr]


def test_auto_is_the_fastest_layout_and_is_recorded() -> None:
    resolved = load(
        EXAMPLES / "scale_7b.yaml",
        [
            "parallel=auto",
            "model.vocab_size=131072",
            H100,
            "launch.gpus_per_node=8",
            "launch.nodes=2",
            "data.dataset=d",
        ],
    )
    assert resolved.config.parallel.auto
    chosen = laid_out(resolved)
    parallel = chosen.config.parallel
    assert parallel.world_size == 16 and not parallel.auto
    check(chosen.config)
    refuse_oversize(chosen.config)
    assert chosen.provenance["parallel.data"].startswith("parallel: auto, planned for 16 x NVIDIA H100")
    assert chosen.provenance["parallel.uneven_streams"] == "default"
    assert load(dump(chosen.config)).config == chosen.config
    assert laid_out(replace(chosen)) is not None and laid_out(chosen) == chosen


def test_auto_says_what_it_lacks() -> None:
    with pytest.raises(ConfigError, match="size of the vocabulary"):
        laid_out(load("parallel: auto\nrun: {directory: r, steps: 1}", ["data.dataset=nowhere"]))
    with pytest.raises(ConfigError, match=r"launch\.gpus_per_node=8"):
        laid_out(small("parallel=auto", H100, "launch.nodes=2"))
    with pytest.raises(ConfigError, match="finds no layout of 1 x NVIDIA H100"):
        laid_out(small("parallel=auto", H100, "launch.gpus_per_node=1", *LARGE, "model.ffns.relu.width=28672"))


def test_other_words_in_place_of_a_layout_are_refused() -> None:
    with pytest.raises(ConfigError, match="parallel must be a section"):
        small("parallel=fast")


@pytest.mark.parametrize("command", ["train", "submit"])
def test_commands_refuse_and_start_nothing(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = make_dataset(tmp_path / "data", ["some text " * 50] * 8).folder
    run = tmp_path / "run"
    large = [setting for setting in LARGE if not setting.startswith(("data.", "model.vocab"))]
    given = [f"data.dataset={data}", f"run.directory={run}", "run.steps=2000", "run.device=cpu", "data.streams=1"]
    with pytest.raises(SystemExit) as end:
        main([command, *given, *large, "--json"])
    out, _ = capsys.readouterr()
    assert end.value.code == 10 and "this run does not fit" in json.loads(out)["error"]
    assert not run.exists()
