"""What users meet before a run starts and between its attempts: told at once, in one message."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from brt_dist.config.guards import RecoveryConfig
from brt_dist.config.loading import load
from brt_dist.config.rules import check
from brt_dist.errors import ConfigError, ExitCode, PlatformError
from brt_dist.optim.learning_rate import learning_rate
from brt_dist.planning.memory import plan_of
from brt_dist.run_directory import RunDirectory
from brt_dist.training.adjustments import Adjustments
from launch.doctor.before_start import check_device
from launch.nodes import reaper
from launch.nodes.processes import End
from launch.run.changed_schedule import changed_schedule
from launch.run.config_file import write_config
from launch.run.size_line import size_line
from launch.run.sizes import with_vocabulary
from launch.run.submission import Submission
from launch.supervision.recovery import Recovery
from launch.supervision.verdict import judge
from tests.datasets import make_dataset
from tests.unit.launch.conftest import Run

ROOT = Path(__file__).parents[3]
BASE = "data: {dataset: d}\nrun: {directory: r, steps: 100}\noptimizer: {warmup_steps: 2}\n"


def test_a_gpu_that_is_not_there_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launch.doctor.before_start._DRIVERS", ())
    monkeypatch.setattr("launch.doctor.before_start.gpus", list)
    with pytest.raises(PlatformError, match=r"run\.device=cuda: this machine shows no GPU; nearest: run\.device=cpu"):
        check_device(load([BASE], ["run.device=cuda"]).config)
    check_device(load([BASE], ["run.device=auto"]).config)
    check_device(load([BASE], ["run.device=cuda", "launch.ray_address=10.0.0.1:6379"]).config)


def test_keys_that_may_change_are_keys() -> None:
    check(
        load([BASE], ["run.allow=[data.streams, optimizer, model.mixers.any_name.gate, model.recurrent_layers]"]).config
    )
    for given in ("data.strems", "x", "data.streams.y", "model.mixers.m.nothing"):
        with pytest.raises(ConfigError, match=rf"run\.allow: '{given}' is not a key of the config"):
            check(load([BASE], [f"run.allow=[{given}]"]).config)


@pytest.mark.parametrize(("schedule", "told"), [("cosine", True), ("rsqrt", False), ("constant", False)])
def test_another_length_of_a_schedule_is_told(schedule: str, told: bool, tmp_path: Path) -> None:
    before = load([BASE], [f"optimizer.schedule={schedule}", "optimizer.learning_rate=1.0"])
    write_config(tmp_path, before)
    longer = load([BASE], [f"optimizer.schedule={schedule}", "optimizer.learning_rate=1.0", "run.steps=200"]).config
    assert changed_schedule(tmp_path, longer) is None, "nothing is saved: the run begins again"
    (tmp_path / "metrics.jsonl").write_text('{"event": "checkpoint", "step": 50, "path": "x"}\n')
    note = changed_schedule(tmp_path, longer)
    assert (note is not None) == told and changed_schedule(tmp_path, before.config) is None
    if note is not None:
        old, new = (learning_rate(51, steps, longer.optimizer) for steps in (100, 200))
        assert "run.steps was 100 and is 200: optimizer.schedule=cosine" in note
        assert f"learning rate of step 51 is {new:.3g}, not {old:.3g}" in note


def test_a_rank_that_the_kernel_killed_for_memory(tmp_path: Path) -> None:
    """It is reported as such, and not retried."""
    (tmp_path / "vmstat").write_text("nr_free_pages 1\noom_kill 3\n")
    (tmp_path / "memory.events").write_text("low 0\noom 2\noom_kill 1\noom_group_kill 0\n")
    files = (str(tmp_path / "vmstat"), str(tmp_path / "memory.events"), str(tmp_path / "nothing"))
    assert reaper.out_of_memory_kills(files) == 4
    verdict = judge({0: End(0, reaper.OUT_OF_MEMORY, 1.0, told=False)}, tmp_path, stop_asked=False)
    assert verdict.exit_code == ExitCode.OUT_OF_MEMORY and "the machine is out of memory" in verdict.reason
    decision = Recovery(RecoveryConfig(), 0).decide(verdict, saved=0, step=0, adjustments=Adjustments())
    assert decision.action == "stop"


@pytest.mark.parametrize(("counted", "code"), [(True, reaper.OUT_OF_MEMORY), (False, -9)])
def test_the_reaper_tells_a_kill_for_memory_from_others(counted: bool, code: int, tmp_path: Path) -> None:
    counts, log = tmp_path / "counts", tmp_path / "log"
    counts.write_text("oom_kill 0\n")
    count = f"echo oom_kill 1 > {counts}; " if counted else ""
    ours = tmp_path / "reaper.py"
    ours.write_text(Path(reaper.__file__).read_text().replace("/proc/vmstat", str(counts)))
    with open(log, "wb") as out:
        command = [sys.executable, "-I", "-S", str(ours), "sh", "-c", f"{count}kill -9 $$"]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=out)
        assert process.wait(60) == code
    assert ("out of memory" in log.read_text()) == counted


def test_status_of_a_job_whose_launcher_failed(tmp_path: Path, run: Run) -> None:
    write_config(tmp_path, load([BASE]))
    details = {"host": os.uname().nodename, "start": "long ago"}
    Submission("local", str(2**22), 1, 5.0, details).write(tmp_path)
    log = RunDirectory(tmp_path).submission_log(1)
    log.parent.mkdir(parents=True)
    log.write_text("starting Ray on this machine\nerror: no space is left on the device\n\n")
    code, out, _ = run("status", tmp_path)
    assert code == 16 and out.startswith(
        "launcher failed: attempt 0, step 0 of 100; error: no space is left on the device"
    )
    code, out, _ = run("status", tmp_path, "--json")
    assert code == 16 and json.loads(out)["verdict"] == "launcher_failed"
    log.write_text("")
    assert "it has written nothing" in run("status", tmp_path)[1]
    RunDirectory(tmp_path).stop_request.touch()  # `brt stop` of a job in a queue
    code, out, _ = run("status", tmp_path)
    assert code == 0 and out.startswith("not started: attempt 0, step 0 of 100; its job was removed from the queue")


def test_a_run_under_torchrun_has_the_state_that_its_events_tell(tmp_path: Path, run: Run) -> None:
    write_config(tmp_path, load([BASE]))
    RunDirectory(tmp_path).attempt(1).path.mkdir(parents=True)  # no launcher, and so no attempt.json
    assert run("status", tmp_path)[1].startswith("not started: attempt 1, step 0 of 100")
    events = ['{"event": "attempt", "attempt": 1, "time": 1.0}', '{"event": "step", "step": 4, "time": 2.0}']
    RunDirectory(tmp_path).events.write_text("\n".join(events) + "\n")
    code, out, _ = run("status", tmp_path)
    assert code == 0 and out.startswith("running: attempt 1, step 4 of 100; started without a launcher")
    events.append('{"event": "end", "status": "preempted", "exit_code": 17, "time": 3.0}')
    RunDirectory(tmp_path).events.write_text("\n".join(events) + "\n")
    assert json.loads(run("status", tmp_path, "--json")[1])["verdict"] == "preempted"
    (row,) = json.loads(run("list", tmp_path, "--json")[1])["runs"]
    assert run("status", tmp_path)[1].startswith(f"{row['state']}: ")


def test_a_dataset_that_is_not_there_is_told_with_the_config(tmp_path: Path, run: Run) -> None:
    folder = make_dataset(tmp_path, ["a text"]).folder
    settings = ["run.directory=r", "run.steps=2000"]
    assert run("config", "show", f"data.dataset={folder}", *settings)[2] == ""
    code, _, err = run("config", "show", f"data.dataset={folder}", "data.validation=nowhere", *settings)
    assert code == 0 and err.startswith("warning: nowhere: no dataset.json (not a dataset folder)")


def test_the_runs_below_a_folder(tmp_path: Path, run: Run) -> None:
    for number, (name, end) in enumerate((("a", '"end": 4.0, "verdict": "finished"'), ("deep/b", '"end": null'))):
        folder = tmp_path / name
        (folder / "attempts/001").mkdir(parents=True)
        (folder / "config.yaml").write_text(BASE)
        (folder / "attempts/001/attempt.json").write_text(f'{{"start": 1.0, "host": "elsewhere", {end}}}')
        event = {"event": "step", "time": 5.0 + number, "step": 7 + number, "loss": 1.5, "tokens_per_second": 1234.0}
        (folder / "metrics.jsonl").write_text(json.dumps(event) + "\n")
    (tmp_path / "broken/attempts").mkdir(parents=True)
    (tmp_path / "broken/config.yaml").write_text("[")
    code, out, _ = run("list", tmp_path)
    rows = [line.split() for line in out.splitlines()[1:]]
    assert code == 0 and [row[0] for row in rows] == ["deep/b", "a", "broken"]
    assert rows[0][1:3] == ["running", "8/100"] and rows[1][1:4] == ["finished", "7/100", "1.5000"]
    assert "1,234" in rows[1]
    assert [row["step"] for row in json.loads(run("list", tmp_path, "--json")[1])["runs"]] == [8, 7, 0]
    assert "no run in" in run("list", tmp_path / "a/attempts")[2]


def test_what_a_run_is_is_told_before_it_starts(tmp_path: Path) -> None:
    folder = make_dataset(tmp_path, ["a" * 40] * 4).folder
    sizes = "layers: 1, width: 8, heads: 1, head_dim: 8, window: 8"
    model = f"model: {{{sizes}, mixers: {{window: {{}}}}, ffns: {{relu: {{width: 16}}}}}}"
    config = load([model, BASE], [f"data.dataset={folder}", "data.segment=16", "data.streams=2"]).config
    line = size_line(config)
    assert line is not None and "100 steps of 32 tokens: 3,200 tokens (20 epochs of 160)" in line
    assert line.startswith(f"{plan_of(with_vocabulary(config)).parameters:,} parameters; ")
    assert size_line(load([model, BASE], ["data.dataset=nowhere"]).config) is None


def test_status_shows_what_the_ranks_do(tmp_path: Path, run: Run) -> None:
    write_config(tmp_path, load([BASE]))
    attempt = RunDirectory(tmp_path).attempt(1)
    attempt.path.mkdir(parents=True)
    attempt.record.write_text('{"start": 1.0, "host": "elsewhere"}')
    attempt.heartbeat.write_text(
        '{"phase": "evaluating", "time": 1.0, "detail": "validation, segment 3 of at most 60"}'
    )
    code, out, _ = run("status", tmp_path)
    assert code == 0 and "evaluating (validation, segment 3 of at most 60)" in out
    attempt.heartbeat.write_text("[" * 3000)
    assert json.loads(run("status", tmp_path, "--json")[1])["phase"] is None


def test_no_warning_of_a_library_reaches_a_user() -> None:
    program = (
        "from launch.cli import main\n"
        "try: main(['config', 'schema', '--output', '/dev/null/x'])\n"
        "except SystemExit as end: print(end.code)\n"
        "import logging, megatron.core.optimizer\n"
        "logging.getLogger('torch.utils.cpp_extension').warning('as where CUDA is installed and there is no GPU')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "18\n" and done.stderr.splitlines() == ["error: /dev/null: a file of this name is in the way"]
