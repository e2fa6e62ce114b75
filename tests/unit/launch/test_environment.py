"""Environment variables of the ranks: those of the launcher that match, and those of the config, on every backend."""

import json
import os
from pathlib import Path

import pytest

from brt_dist.config.environment import for_ranks
from brt_dist.config.loading import load
from brt_dist.config.rules import check
from brt_dist.config.schema import Config
from brt_dist.errors import ConfigError, PlatformError
from brt_dist.kinds import BACKENDS
from brt_dist.worker import Worker
from launch.backends.job import Job
from launch.cli import main
from launch.nodes.environment import Placement, rank_environment, variables_for_ranks
from tests.datasets import make_dataset

PLACE = Placement(3, 16, 1, 8, 0, "10.0.0.1", 29500)
SET = "launch.environment={NCCL_DEBUG: INFO, NCCL_IB_HCA: mlx5_0, NCCL_IB_TIMEOUT: 22}"
SUBMITTED_WITH = {
    "local": (),
    "ray": ("launch.ray.jobs_address=http://127.0.0.1:8265",),
    "slurm": (),
    "kubernetes": ("launch.kubernetes.image=here/brt:1", "launch.kubernetes.volumes={/: claim}"),
}


def config(*settings: str, run: Path = Path("/r")) -> Config:
    text = {"data": {"dataset": "/d"}, "run": {"directory": str(run), "steps": 5000, "device": "cpu"}}
    return load(json.dumps(text), settings).config


@pytest.mark.parametrize(
    "name",
    [
        "PYTORCH_CUDA_ALLOC_CONF",
        "PYTORCH_ALLOC_CONF",
        "CUDA_DEVICE_MAX_CONNECTIONS",
        "CUBLAS_WORKSPACE_CONFIG",
        "NCCL_SOCKET_IFNAME",
        "FI_PROVIDER",
        "UCX_TLS",
        "TRITON_CACHE_DIR",
        "LD_LIBRARY_PATH",
        "TORCH_NCCL_BLOCKING_WAIT",
        "OMP_NUM_THREADS",
        "GLIBC_TUNABLES",
        "HF_TOKEN",
    ],
)
def test_what_clusters_need_is_passed_on(name: str) -> None:
    passed = variables_for_ranks(config().launch, {name: "x", "HOME": "/home/me", "XNCCL_DEBUG": "1"})
    assert passed == {name: "x"}
    assert rank_environment({name: "of the node"}, passed, PLACE, None, 8)[name] == "x"


def test_the_list_is_a_setting() -> None:
    passed = variables_for_ranks(
        config("launch.pass_environment=[MY_*]").launch, {"MY_SITE": "x", "NCCL_DEBUG": "INFO"}
    )
    assert passed == {"MY_SITE": "x"}


def test_the_config_wins_over_the_shell_and_the_node() -> None:
    passed = variables_for_ranks(config(SET).launch, {"NCCL_DEBUG": "WARN"})
    assert passed == {"NCCL_DEBUG": "INFO", "NCCL_IB_HCA": "mlx5_0", "NCCL_IB_TIMEOUT": "22"}
    assert rank_environment({"NCCL_DEBUG": "TRACE"}, passed, PLACE, None, 8)["NCCL_DEBUG"] == "INFO"


def test_what_nobody_sets_has_a_default_for_networks_with_rdma() -> None:
    launch = config("launch.environment={NCCL_IB_TIMEOUT: 20}").launch
    assert launch.default_environment == {"NCCL_DEBUG": "WARN", "NCCL_IB_TIMEOUT": "22"}
    given = for_ranks(launch.default_environment, {"HOME": "/"}, launch.environment)
    assert given == {"NCCL_DEBUG": "WARN", "NCCL_IB_TIMEOUT": "20"}
    of_node = {"NCCL_DEBUG": "INFO", "NCCL_IB_TIMEOUT": "18"}  # the site knows its network
    assert for_ranks(launch.default_environment, of_node, {}) == {}
    assert config("launch.default_environment={}").launch.default_environment == {}
    with pytest.raises(ConfigError, match=r"launch\.default_environment: RANK is different"):
        check(config("launch.default_environment={RANK: 1}"))


def test_a_dry_run_shows_what_ranks_get(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_dataset(tmp_path, ["some text of a document"] * 9)
    (tmp_path / "config.yaml").write_text(f"""\
model: {{layers: 2, width: 16, heads: 2, head_dim: 8, mlp_width: 32, window: 8, states: 8, recurrent_layers: [-1]}}
data: {{dataset: {tmp_path}/dataset, segment: 16, streams: 4}}
optimizer: {{warmup_steps: 2}}
run: {{directory: {tmp_path}/run, steps: 6, precision: fp32, device: cpu}}
""")
    settings = [str(tmp_path / "config.yaml")]
    with pytest.raises(SystemExit):
        main(["submit", *settings, "launch.environment={NCCL_IB_HCA: mlx5}", "--dry-run", "--json"])
    shown = json.loads(capsys.readouterr().out)
    assert "error" not in shown, shown
    assert shown["environment"] == {"NCCL_DEBUG": "WARN", "NCCL_IB_TIMEOUT": "22", "NCCL_IB_HCA": "mlx5"}
    with pytest.raises(SystemExit):
        main(["submit", *settings, "--dry-run"])
    assert "every rank gets NCCL_DEBUG=WARN NCCL_IB_TIMEOUT=22 (" in capsys.readouterr().err


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_backend_gives_the_launcher_the_config_that_has_them(backend: str, tmp_path: Path) -> None:
    job = Job(config(f"launch.backend={backend}", SET, *SUBMITTED_WITH[backend], run=tmp_path / "r"), 1)
    check(job.config)
    assert load(job.config_text).config.launch.environment == job.config.launch.environment
    shipped = job.config_text if backend in ("local", "slurm") else BACKENDS[backend]().render(job)
    assert "NCCL_IB_HCA: mlx5_0" in shipped  # the others share the run directory, with its config.yaml


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("RANK", "different for every rank"),
        ("A-B", "not a variable name"),
        ("HF_TOKEN", "looks like a secret"),
        ("AWS_SECRET_ACCESS_KEY", "launch.pass_environment"),
    ],
)
def test_what_cannot_be_set_is_refused(name: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check(config(f"launch.environment={{{name}: x}}"))


def test_a_rank_under_torchrun_takes_those_of_the_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCCL_DEBUG", "WARN")
    monkeypatch.delenv("RANK", raising=False)
    (tmp_path / "config.yaml").write_text(config("launch.environment={NCCL_DEBUG: INFO}").model_dump_json())
    with pytest.raises(PlatformError, match="RANK"):  # it is no rank, which it finds next
        Worker(tmp_path, 1).run()
    assert os.environ["NCCL_DEBUG"] == "INFO"


def test_names_that_only_resemble_secrets_are_taken() -> None:
    check(config("launch.environment={TOKENIZERS_PARALLELISM: x}"))
