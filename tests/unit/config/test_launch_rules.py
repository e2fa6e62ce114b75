"""Settings of the backends: what is refused, and with which message."""

from collections.abc import Sequence

import pytest

from brt_dist.config.launch_rules import gpus_per_node
from brt_dist.config.loading import dump, load
from brt_dist.config.rules import check
from brt_dist.config.schema import Config
from brt_dist.errors import ConfigError

BASE = "data: {dataset: /shared/d}\nrun: {directory: /shared/r, steps: 5000, device: cpu}\n"
POD = ("launch.backend=kubernetes", "launch.kubernetes.image=here/brt:1", "launch.kubernetes.volumes={/shared: claim}")


def config(*settings: str) -> Config:
    return load(BASE, settings).config


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (("launch.backend=ray",), "needs launch.ray.jobs_address"),
        (("launch.backend=ray", "launch.ray.jobs_address=http://me:secret@head:8265"), "without user and password"),
        (("launch.backend=slurm", "launch.slurm.options=[--array=1-9]"), "--array is set by brt submit itself"),
        (("launch.backend=slurm", "launch.slurm.options=[june]"), "'june' is not an option"),
        (("launch.backend=slurm", 'launch.time_limit="0:04"'), "nearest: launch.slurm.notice_seconds=60"),
        (("launch.backend=slurm", "launch.slurm.memory=much"), "such as 200G"),
        (("launch.backend=slurm", 'launch.slurm.interface="a b; reboot"'), "not the name of a network interface"),
        (("launch.backend=kubernetes",), "needs launch.kubernetes.image"),
        (POD[:2], "lost with the pods"),
        ((*POD, "run.directory=/elsewhere/r"), "run.directory=/elsewhere/r is not on a volume of the pods"),
        ((*POD, "launch.kubernetes.memory=lots"), "'lots' is not a Kubernetes quantity"),
        ((*POD, "launch.kubernetes.namespace=My Place"), "lower case letters"),
        ((*POD, "launch.kubernetes.secret_environment={A-B: x}"), "must be NAME: SECRET/KEY"),
        (("run.device=cuda", "parallel.data=2", "launch.gpus_per_node=1"), "nearest: launch.gpus_per_node=2"),
        (
            ("launch.backend=slurm", "run.device=auto", "parallel.data=8", "launch.nodes=2"),
            "run.device=auto is not enough; nearest: run.device=cuda (launch.gpus_per_node=4)",
        ),
        ((*POD, "run.device=auto"), "run.device=auto is not enough"),
    ],
)
def test_what_cannot_work_is_refused_with_what_would(settings: Sequence[str], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check(config(*settings))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        POD,
        ("launch.backend=slurm",),
        ("launch.backend=slurm", "run.device=auto", "launch.gpus_per_node=0"),
        ("launch.backend=local", "run.device=auto"),
    ],
)
def test_what_works_is_taken_and_written_as_it_was(settings: Sequence[str]) -> None:
    found = config(*settings)
    check(found)
    assert load(dump(found)).config == found


@pytest.mark.parametrize(
    ("text", "seconds"), [("0:30", 1800), ("24:00:00", 86400), ("2-01:02:03", 2 * 86400 + 3600 + 123)]
)
def test_time_limits_in_seconds(text: str, seconds: int) -> None:
    assert config(f'launch.time_limit="{text}"').launch.time_limit_seconds == seconds


@pytest.mark.parametrize("text", ["tomorrow", "1:99:99", "1:60", "\u0661:00", "1", "-1:00", "1-:00"])
def test_a_time_limit_of_another_form_says_which_there_are(text: str) -> None:
    with pytest.raises(ConfigError, match="H:MM, H:MM:SS or D-H:MM:SS"):
        config(f'launch.time_limit="{text}"')


def test_gpus_are_one_a_rank_unless_said_otherwise() -> None:
    assert gpus_per_node(config("run.device=cuda", "parallel.data=8", "launch.nodes=2")) == 4
    assert gpus_per_node(config("run.device=cpu", "parallel.data=8")) == 0
    assert gpus_per_node(config("launch.gpus_per_node=8")) == 8
