"""The paths of a run, which docs/launching.md lists, and that no other code builds them."""

import ast
from pathlib import Path

import pytest

from brt_dist.errors import ConfigError
from brt_dist.run_directory import AttemptDirectory, RunDirectory

ROOT = Path(__file__).parents[2]
# Names of files and folders of a run.  Exported weights and `brt eval` have a config.yaml of their own.
NAMES = {
    "adjustments.json", "attempt.json", "attempts", "config.yaml", "health.json", "heartbeat.json", "loss.png",
    "metrics.jsonl", "mlflow.db", "plots", "provenance.json", "report.html", "submission.json", "submissions",
    "syncer.log", "system", "tracking",
}  # fmt: skip
OTHERS = {("brt_dist/export/folder.py", "config.yaml"), ("brt_dist/eval_worker.py", "config.yaml")}


def test_paths_are_where_older_runs_have_them() -> None:
    run = RunDirectory(Path("run"))
    assert [
        str(path.relative_to("run"))
        for path in (
            run.config,
            run.events,
            run.checkpoints,
            run.submission,
            run.submission_log(2),
            run.attempt(3).record,
            run.attempt(3).log(1),
            run.attempt(3).failure(12),
            run.attempt(3).heartbeat,
            run.adjustments,
            run.loss_plot,
            run.system_metrics("../a b"),
            run.mlflow_store,
            run.lock,
        )
    ] == [
        "config.yaml",
        "metrics.jsonl",
        "checkpoints",
        "submission.json",
        "submissions/002/log",
        "attempts/003/attempt.json",
        "attempts/003/rank_001.log",
        "attempts/003/rank_012.error.json",
        "attempts/003/heartbeat.json",
        "adjustments.json",
        "plots/loss.png",
        "system/.._a_b.jsonl",
        "tracking/mlflow.db",
        ".lock",
    ]
    assert run.attempt(3).run == run


def test_attempts_are_counted_by_their_folders(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    assert (run.attempts(), run.next_attempt()) == ([], 1)
    for number in (1, 2, 1000):
        run.attempt(number).path.mkdir(parents=True)
    (tmp_path / "attempts" / "notes").mkdir()
    assert (run.attempts(), run.next_attempt()) == ([1, 2, 1000], 1001)


def test_a_folder_without_config_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is not a run directory: it has no config\.yaml"):
        RunDirectory.existing(tmp_path)
    (tmp_path / "config.yaml").touch()
    assert RunDirectory.existing(tmp_path).is_run


@pytest.mark.parametrize("package", ["brt_dist", "pipelines", "launch"])
def test_nobody_else_joins_a_name_onto_a_run(package: str) -> None:
    found = {
        (str(path.relative_to(ROOT)), node.right.value)
        for path in (ROOT / package).rglob("*.py")
        if path.name != "run_directory.py"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div) and isinstance(node.right, ast.Constant)
        if node.right.value in NAMES
    }
    assert not found - OTHERS


def test_an_attempt_is_found_from_its_folder(tmp_path: Path) -> None:
    attempt = AttemptDirectory(tmp_path / "attempts" / "007")
    assert attempt == RunDirectory(tmp_path).attempt(7) and attempt.logs() == []
