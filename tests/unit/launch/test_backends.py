"""What each backend gets: names are quoted, there are no secrets, and the script does what it says.

The shell scripts are run, with stand-ins for Slurm's programs that record their arguments.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from brt_dist.config.loading import load
from brt_dist.config.schema import Config
from brt_dist.errors import ConfigError
from brt_dist.kinds import BACKENDS
from brt_dist.run_directory import RunDirectory
from launch.backends.job import Job
from launch.backends.submission import submit
from tests.datasets import make_dataset

NASTY = "a 'quoted' \"run\" $(touch oops); `touch oops` %j \\ *"
SETTINGS = {
    "local": (),
    "ray": ("launch.ray.jobs_address=http://127.0.0.1:8265",),
    "slurm": ("launch.nodes=2", 'launch.time_limit="4:00:00"', "launch.slurm.options=[--comment=it's $(here)]"),
    "kubernetes": ("launch.nodes=2", "launch.kubernetes.image=here/brt:1", "launch.kubernetes.volumes={/: claim}"),
}

# Writes its words as a line of JSON to $CALLS, then does what is special about it.
STUB = """\
#!{python}
import json, os, signal, sys, time
name = os.path.basename(sys.argv[0])
with open(os.environ["CALLS"], "a") as file:
    file.write(json.dumps([name, *sys.argv[1:]]) + "\\n")
if name == "sbatch":
    with open(os.environ["CALLS"] + ".script", "w") as file:
        file.write(sys.stdin.read())
    print("123")
if name == "srun":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    folder = sys.argv[sys.argv.index("launch.nodes.ray_node") + 1]
    with open(os.path.join(folder, "head"), "w") as file:
        file.write("10.0.0.1:6379")
    time.sleep(60)
if name == "container" and os.environ.get("TRAIN_WAITS"):
    def end(*_):
        time.sleep(0.5)
        sys.exit(17)
    signal.signal(signal.SIGTERM, end)
    open(os.environ["CALLS"] + ".trains", "w").close()
    time.sleep(60)
if name == "container":
    sys.exit(int(os.environ.get("TRAIN_ENDS", "0")))
"""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / NASTY


def config(run: Path, name: str, *settings: str) -> Config:
    text = json.dumps(
        {
            "data": {"dataset": str(run.parent)},
            "run": {"directory": str(run), "steps": 5, "name": NASTY, "device": "cpu"},
        }
    )
    return load(text, [f"launch.backend={name}", *SETTINGS[name], *settings]).config


@pytest.fixture
def stubs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stubs first on the path; returns the file of calls."""
    folder = tmp_path / "stubs"
    folder.mkdir()
    for name in ("sbatch", "srun", "scontrol", "container"):
        (folder / name).write_text(STUB.format(python=sys.executable))
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    monkeypatch.setenv("SLURM_JOB_ID", "123")
    return tmp_path / "calls"


def calls(file: Path) -> list[list[str]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_sbatch_gets_every_name_as_one_word(run: Path, stubs: Path) -> None:
    record = BACKENDS["slurm"]().submit(Job(config(run, "slurm"), 1))
    assert record.job == "123"
    (words,) = calls(stubs)
    assert f"--job-name=brt {NASTY}" in words
    assert f"--output={run / 'submissions' / '001' / 'log'}".replace("%", "%%") in words
    assert words[-1] == "--comment=it's $(here)" and "--time=0-04:00:00" in words and "--requeue" in words
    assert not (run.parent / "oops").exists() and not Path("oops").exists()


@pytest.mark.parametrize(("ends", "stopped"), [(0, False), (14, False), (17, False), (17, True)])
def test_the_slurm_script_ends_as_the_run_did_and_requeues_what_was_preempted(
    run: Path, stubs: Path, monkeypatch: pytest.MonkeyPatch, ends: int, stopped: bool
) -> None:
    script = submitted(run, stubs)
    if stopped:
        RunDirectory(run).stop_request.touch()
    monkeypatch.setenv("TRAIN_ENDS", str(ends))
    done = subprocess.run(["bash", str(script)], capture_output=True, text=True, timeout=60, check=False)
    found = {words[0]: words[1:] for words in calls(stubs)}
    node = found["srun"][found["srun"].index("container") :]
    assert node[1:6] == [sys.executable, "-P", "-m", "launch.nodes.ray_node", str(run / "submissions/001")]
    assert node[node.index("--listen") + 1] == "address"
    train = [
        sys.executable,
        "-P",
        "-m",
        "launch.cli",
        "train",
        str(run / "config.yaml"),
        "--ray-address",
        "10.0.0.1:6379",
    ]
    assert found["container"] == train
    assert found.get("scontrol") == (["requeue", "123"] if ends == 17 and not stopped else None)
    assert done.returncode == ends, done.stderr
    assert not Path("oops").exists()


def test_the_slurm_script_passes_the_notice_on_and_waits_for_the_checkpoint(
    run: Path, stubs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = submitted(run, stubs)
    monkeypatch.setenv("TRAIN_WAITS", "1")
    process = subprocess.Popen(["bash", str(script)], stdout=subprocess.DEVNULL)
    while not Path(f"{stubs}.trains").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 17
    assert calls(stubs)[-1] == ["scontrol", "requeue", "123"]


def test_many_runs_are_one_array_whose_tasks_are_their_jobs(
    run: Path, stubs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each task runs what its run alone would be submitted as, with the log in its own folder."""
    settings = ("launch.slurm.container=[container]", "launch.slurm.at_once=3")
    jobs = [Job(config(run.with_name(f"{NASTY} {number}"), "slurm", *settings), 2) for number in range(5)]
    records = list(BACKENDS["slurm"]().submit_many(jobs))
    assert [record.job for record in records] == [f"123_{task}" for task in range(5)]
    (words,) = calls(stubs)
    assert words[-1] == "--array=0-4%3" and f"--job-name=brt {run.parent.name}" in words
    assert [word for word in words if word.startswith("--output")] == ["--output=/dev/null"]
    stubs.unlink()
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    done = subprocess.run(["bash", f"{stubs}.script"], capture_output=True, text=True, timeout=60, check=False)
    (train,) = [one for one in calls(stubs) if one[0] == "container" and "train" in one]
    assert train[5:7] == ["train", str(jobs[3].run / "config.yaml")]
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert jobs[3].folder.joinpath("log").is_file() and not jobs[2].folder.joinpath("log").exists()
    assert jobs[3].folder.joinpath("job.sh").read_text() in BACKENDS["slurm"]().render(jobs[3])
    assert not Path("oops").exists()


def test_one_run_needs_no_array(run: Path, stubs: Path) -> None:
    (record,) = BACKENDS["slurm"]().submit_many([Job(config(run, "slurm"), 1)])
    assert record.job == "123" and not [word for word in calls(stubs)[0] if word.startswith("--array")]


def submitted(run: Path, stubs: Path) -> Path:
    """The script that sbatch got; what the stubs wrote so far is forgotten, and a requeue is not waited for."""
    BACKENDS["slurm"]().submit(Job(config(run, "slurm", "launch.slurm.container=[container]"), 1))
    stubs.unlink()
    script = Path(f"{stubs}.script")
    script.write_text(script.read_text().replace("sleep 60", "sleep 0"))
    return script


def test_the_local_command_takes_any_name(run: Path) -> None:
    text = BACKENDS["local"]().render(Job(config(run, "local"), 1))
    words = subprocess.run(
        ["bash", "-c", text.replace("exec ", "printf '%s\\n' ").partition(" </dev/null")[0]],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert words == [sys.executable, "-P", "-m", "launch.cli", "train", str(run / "config.yaml")]


def test_the_request_to_ray_holds_no_name_in_a_shell_line(run: Path) -> None:
    job = Job(config(run, "ray"), 1)
    request = json.loads(BACKENDS["ray"]().render(job))
    assert request == json.loads(BACKENDS["ray"]().render(job))
    assert request["entrypoint"] == "exec python -m launch.cli train brt.config.yaml --ray-address auto"
    assert request["metadata"]["name"] == NASTY
    assert load(request["ships"]["brt.config.yaml"]).config == job.config


def test_kubernetes_manifests_hold_the_config_and_names_that_are_allowed(run: Path) -> None:
    job = Job(config(run, "kubernetes"), 3)
    text = BACKENDS["kubernetes"]().render(job)
    settings, made = yaml.safe_load_all(text)
    assert load(settings["data"]["config.yaml"]).config == job.config
    name = made["metadata"]["name"]
    assert name.startswith("brt-a-quoted-run-touch-oops") and len(name) <= 47
    assert settings["metadata"]["name"] == name and made["metadata"]["annotations"]["brt/name"] == NASTY
    assert made["spec"]["entrypoint"] == "brt train /etc/brt/config.yaml --ray-address auto"
    assert made["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    (workers,) = made["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert (workers["replicas"], workers["minReplicas"], workers["maxReplicas"]) == (1, 1, 1)


@pytest.mark.parametrize("name", ["ray", "kubernetes"])
def test_a_password_is_not_sent_to_a_cluster(tmp_path: Path, name: str) -> None:
    found = config(tmp_path / "run", name).model_dump_json()
    with pytest.raises(ConfigError, match=r"run.tracking.uri=http://\*\*\*@there contains a password"):
        settings = ["run.tracking.uri=http://me:hunter2@there", "optimizer.warmup_steps=1", "parallel.data=2"]
        submit([found], settings, dry_run=True)


@pytest.mark.parametrize("name", BACKENDS)
def test_a_dry_run_prints_what_is_applied_and_leaves_nothing(tmp_path: Path, name: str) -> None:
    make_dataset(tmp_path, ["one document of some length " * 20] * 4)
    run = tmp_path / NASTY
    found = config(run, name).model_dump(mode="json")
    found["data"] |= {"dataset": str(tmp_path / "dataset"), "streams": 2}
    found["model"] |= {"vocab_size": None}
    found["parallel"]["data"] = 2
    found["optimizer"]["warmup_steps"] = 1
    before = sorted(tmp_path.rglob("*"))
    done = submit([json.dumps(found)], [], dry_run=True)
    assert done.record is None and done.text and "hunter2" not in done.text
    assert sorted(tmp_path.rglob("*")) == before
    assert subprocess.run(["bash", "-n"], input=done.text, text=True, check=False).returncode == 0 or name in (
        "ray",
        "kubernetes",
    )


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (("launch.gpus_per_node=8",), "--gpus-per-node=8"),
        (("launch.gpus_per_node=8", "launch.slurm.gpus=gres"), "--gres=gpu:8"),
        (("launch.gpus_per_node=4", "launch.slurm.gpus=gres", "launch.slurm.gpu_type=h100"), "--gres=gpu:h100:4"),
        (("launch.gpus_per_node=4", "launch.slurm.gpu_type=h100"), "--gpus-per-node=h100:4"),
        (("launch.gpus_per_node=8", "launch.slurm.gpus=none"), None),
    ],
)
def test_slurm_is_asked_for_gpus_in_the_way_of_the_site(
    run: Path, stubs: Path, settings: tuple[str, ...], expected: str | None
) -> None:
    BACKENDS["slurm"]().submit(Job(config(run, "slurm", *settings), 1))
    (words,) = calls(stubs)
    assert [word for word in words if word.startswith(("--gpus", "--gres"))] == ([expected] if expected else [])


def test_slurm_writes_mail_and_takes_another_python(run: Path, stubs: Path) -> None:
    settings = ["launch.slurm.mail=me@example.org", "launch.slurm.python=/opt/conda/bin/python"]
    BACKENDS["slurm"]().submit(Job(config(run, "slurm", *settings), 1))
    (words,) = calls(stubs)
    assert "--mail-user=me@example.org" in words and "--mail-type=END,FAIL,REQUEUE" in words
    script = Path(f"{stubs}.script").read_text()
    assert script.count("/opt/conda/bin/python -P -m launch.") == 2 and sys.executable not in script
    problems = list(
        BACKENDS["slurm"].broken_rules(config(run, "slurm", "launch.slurm.mail=me", "launch.slurm.gpu_type=a b"))
    )
    assert len(problems) == 2 and "is not an address" in problems[1]


def test_a_setup_line_that_fails_ends_the_job_and_is_told(run: Path, stubs: Path) -> None:
    (run.parent / "activate").write_text('export SEEN="$NEVER_SET"\n')  # as scripts of conda do
    setup = json.dumps([f". {run.parent / 'activate'}", "module_load_x 12"])
    BACKENDS["slurm"]().submit(Job(config(run, "slurm", f"launch.slurm.setup={setup}"), 1))
    stubs.unlink()
    done = subprocess.run(["bash", f"{stubs}.script"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 18 and "failed: module_load_x 12 (line 7 of the job script)" in done.stderr
    assert "unbound" not in done.stderr and not stubs.exists()  # srun was not reached


def test_the_task_of_a_node_gets_its_cpus(run: Path, stubs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = submitted(run, stubs)
    for variables, expected in (({"SLURM_CPUS_ON_NODE": "64"}, "64"), ({"SLURM_CPUS_PER_TASK": "12"}, "12")):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        subprocess.run(["bash", str(script)], capture_output=True, timeout=60, check=False)
        (srun,) = [words for words in calls(stubs) if words[0] == "srun"]
        assert f"--cpus-per-task={expected}" in srun
        stubs.unlink()
