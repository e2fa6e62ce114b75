"""What is sent to a tracking server, once, and what may be shown of its address."""

import json
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brt_dist.config.schema import TrackingConfig
from brt_dist.event_log import EventReader
from brt_dist.events import Event, SystemEvent, from_json
from brt_dist.run_directory import RunDirectory
from launch.nodes.system_metrics import SystemSampler
from launch.run.redact import redact
from launch.run.submission import Submission
from launch.tracking import facts
from launch.tracking.mlflow_run import shown_place
from launch.tracking.rows import Row, Tag, TextFile, rows, system_rows
from launch.tracking.state import SyncState
from launch.tracking.uri import fingerprint, page_command, tracking_uri


def parsed(*events: dict[str, Any]) -> list[Event]:
    found = [from_json(event) for event in events]
    assert None not in found
    return [event for event in found if event is not None]


def step(number: int, at: float, **values: Any) -> dict[str, Any]:
    return {"event": "step", "time": at, "attempt": 1, "step": number, **values}


def test_rows_have_the_times_of_the_events() -> None:
    sent: dict[str, int] = {}
    found = list(rows(parsed(step(3, 12.3456, loss=1.5, note="text", flag=True)), sent))
    assert found == [Row("loss", 1.5, 12346, 3)]
    assert sent == {"step": 3}


def test_evaluations_are_curves_of_their_own() -> None:
    event = {"event": "evaluation", "time": 1.0, "attempt": 1, "step": 3, "dataset": "validation", "memory": "cleared"}
    assert list(rows(parsed({**event, "bits_per_token": 2.0}), {"step": 9})) == [
        Row("validation/cleared/bits_per_token", 2.0, 1000, 3)
    ]


def test_what_guards_and_carried_states_tell_are_curves_too() -> None:
    events = [
        {
            "event": "memory",
            "time": 1.0,
            "attempt": 1,
            "step": 4,
            "layers": [{"layer": 2, "rms": 0.5, "kept": 0.9}],
        },
        {"event": "skip", "time": 2.0, "attempt": 1, "step": 4, "why": "not finite"},
        {"event": "straggler", "time": 3.0, "attempt": 1, "step": 5, "rank": 3, "host": "a", "seconds": 2.0},
    ]
    assert list(rows(parsed(*events), {})) == [
        Row("memory/layer_2/rms", 0.5, 1000, 4),
        Row("memory/layer_2/kept", 0.9, 1000, 4),
        Row("guards/skip/count", 1.0, 2000, 4),
        Row("guards/straggler/rank", 3.0, 3000, 5),
        Row("guards/straggler/seconds", 2.0, 3000, 5),
        Row("guards/straggler/count", 1.0, 3000, 5),
    ]


def test_samples_are_text_files() -> None:
    made = {"document": 3, "prompt": "Once upon", "text": " a time"}
    assert list(rows(parsed({"event": "sample", "time": 1.0, "attempt": 1, "step": 40, "samples": [made]}), {})) == [
        TextFile("samples/step_00000040.txt", "document 3\nOnce upon\n>>>  a time\n")
    ]


def test_samples_of_a_node_are_numbered_and_named_as_mlflow_does() -> None:
    samples = [SystemEvent(time=float(at), values={"gpu_0_power_usage_watts": 300.0 + at}) for at in (1, 2)]
    assert list(system_rows(samples, "node-a", 7)) == [
        Row("system/node-a/gpu_0_power_usage_watts", 301.0, 1000, 7),
        Row("system/node-a/gpu_0_power_usage_watts", 302.0, 2000, 8),
    ]


def test_facts_of_a_run_of_two_attempts(tmp_path: Path) -> None:
    Submission("slurm", "42", 1, 0.0, {}).write(tmp_path)
    records: list[dict[str, Any]] = [
        {
            "attempt": 1,
            "host": "login",
            "nodes": ["a", "b"],
            "layout": {"tensor": 2, "data": 2},
            "verdict": "lost_node",
        },
        {"attempt": 2, "host": "login", "nodes": ["a"], "layout": {"tensor": 2, "data": 1}, "git_commit": "abc"},
    ]
    records[0]["decision"] = {"action": "retry", "why": "a node was lost"}
    for record in records:
        folder = tmp_path / "attempts" / f"00{record['attempt']}"
        folder.mkdir(parents=True)
        (folder / "attempt.json").write_text(json.dumps(record))
    found = facts.tags(tmp_path)
    assert (found["backend"], found["job"], found["hosts"], found["git_commit"]) == ("slurm", "42", "a", "abc")
    held = {"parameters": 1, "weights": 4, "optimizer": 8, "carried": 2}
    plan = {"parameters": 1, "ranks": 4, "fullest_rank": held, "tokens_per_step": 64, "flops_per_step": 1.5}
    events = [
        {"event": "attempt", "attempt": 1, "start_step": 0, "plan": {**plan, "ranks": 8}},
        {"event": "checkpoint", "attempt": 1, "step": 10, "path": "old"},
        {"event": "attempt", "attempt": 2, "start_step": 5, "plan": plan},
        {"event": "checkpoint", "attempt": 2, "step": 10, "path": "new"},
    ]
    files = {name: json.loads(text) for name, text in facts.files(tmp_path, parsed(*events)).items()}
    assert files["plan.json"] == plan
    rows_of = {
        name: [dict(zip(t["columns"], row, strict=True)) for row in t["data"]]
        for name, t in files.items()
        if "data" in t
    }
    assert [(row["from_step"], row["hosts"], row["layout"], row["then"]) for row in rows_of["attempts.json"]] == [
        (0, "a, b", "tensor=2 data=2", "retry: a node was lost"),
        (5, "a", "tensor=2 data=1", None),
    ]
    assert [(row["step"], row["path"]) for row in rows_of["checkpoints.json"]] == [(10, "new")]
    assert {entry["path"] for entry in json.loads(found["mlflow.loggedArtifacts"])} == set(rows_of)


def test_a_node_is_sampled_until_stopped(tmp_path: Path) -> None:
    sampler = SystemSampler(tmp_path, 0.01)
    path = RunDirectory(tmp_path).system_metrics(socket.gethostname())
    reader = EventReader(tmp_path, file=path)
    samples: list[Mapping[str, float]] = []
    while len(samples) < 3:
        samples += [event.values for event in reader.read() if isinstance(event, SystemEvent)]
    sampler.stop()
    assert all(0 <= sample["cpu_utilization_percentage"] <= 100 for sample in samples)
    assert all(
        sample["system_memory_usage_megabytes"] > 10 and sample["disk_available_megabytes"] > 1 for sample in samples
    )
    assert all(sample["network_receive_megabytes"] >= 0 for sample in samples)
    assert RunDirectory(tmp_path).system_metrics("../a b").parent == tmp_path / "system"


def test_tags_of_attempts_and_checkpoints() -> None:
    events = [
        {"event": "attempt", "time": 1.0, "attempt": 2, "layout": {"tensor": 2, "data": 1}, "start_step": 4},
        {
            "event": "checkpoint",
            "time": 1.0,
            "attempt": 2,
            "step": 5,
            "path": "checkpoints/step_00000005",
            "seconds": 1,
        },
        {"event": "message", "time": 1.0, "attempt": 2, "message": "resumed"},
    ]
    assert list(rows(parsed(*events), {})) == [
        Tag("attempts", "2"),
        Tag("layout", "tensor=2 data=1"),
        Row("checkpoint/seconds", 1.0, 1000, 5),
        Tag("checkpoint", "checkpoints/step_00000005"),
    ]


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(1, 5)), min_size=1, max_size=6), st.data())
def test_whatever_is_trained_again_no_step_is_sent_twice(attempts: list[tuple[int, int]], data: st.DataObject) -> None:
    """Attempts as (steps lost at the resume, steps done), read in any portions."""
    events, last, trained = [], 0, dict[int, float]()
    for number, (lost, done) in enumerate(attempts):
        first = max(last - lost, 0) + 1
        last = first + done - 1
        again = range(first, last + 1)
        events += [{**step(at, number + at / 10, loss=float(number)), "attempt": number} for at in again]
        trained |= dict.fromkeys(again, float(number))
    sent: dict[str, int] = {}
    found: list[Row | Tag | TextFile] = []
    while events:
        count = data.draw(st.integers(1, len(events)))
        found += rows(parsed(*events[:count]), sent)
        events = events[count:]
    curve = [row for row in found if isinstance(row, Row) and row.key == "loss"]
    assert [row.step for row in curve] == list(range(1, max(trained) + 1))
    assert len({(row.key, row.step) for row in found if isinstance(row, Row)}) == len(found)
    # the loss that counts is that of the last attempt that trained the step
    last_of = {row.step: row.value for row in curve}
    for row in found:
        if isinstance(row, Row) and row.key.startswith("attempt_"):
            last_of[row.step] = row.value
    assert last_of == trained


@pytest.mark.parametrize(
    "text",
    [
        "https://user:hunter2@host:5000/path",
        "postgresql+psycopg://user:hunter2@db/mlflow",
        "https://hunter2@host",
        "cannot reach 'http://me:hunter2@h/x' (timeout)",
        "mysql://u:hun/ter2@h/hunter2@host",
        "https://host/path?token=hunter2&x=1",
        "postgresql://host/db?user=a&password=hunter2",
        "https://host/path?aws_access_key_id=hunter2",
        "https://host/path?X-Amz-Credential=hunter2",
    ],
)
def test_credentials_are_never_shown(text: str) -> None:
    assert "hunter2" not in redact(text) and "***" in redact(text)


@pytest.mark.parametrize("text", ["sqlite:////runs/a/mlflow.db", "http://127.0.0.1:5000", "me@example.org", "s3://b/c"])
def test_harmless_text_stays(text: str) -> None:
    assert redact(text) == text


def test_default_uri_and_the_command_for_the_page(tmp_path: Path) -> None:
    run = tmp_path / "a run"
    assert tracking_uri(TrackingConfig(), run) == f"sqlite:///{run}/tracking/mlflow.db"
    command = page_command(TrackingConfig(), run)
    assert command == f"mlflow ui --backend-store-uri 'sqlite:///{run}/tracking/mlflow.db' --host 127.0.0.1"
    remote = TrackingConfig(uri="https://user:hunter2@host:5000")
    assert page_command(remote, run) == "open https://***@host:5000"


def test_the_state_is_kept_per_server(tmp_path: Path) -> None:
    state = SyncState.load(tmp_path, "a")
    state.run_id, state.offset, state.sent = "id", 7, {"step": 3}
    state.save(tmp_path)
    assert SyncState.load(tmp_path, "a") == state
    other = SyncState.load(tmp_path, "b")
    assert (other.run_id, other.offset) == (None, 0) and other.identity != state.identity
    (tmp_path / "tracking" / "state.json").write_text("{")
    assert SyncState.load(tmp_path, "a").offset == 0


def test_new_credentials_are_the_same_server() -> None:
    assert fingerprint("http://a:b@host/x") == fingerprint("http://c:d@host/x") == fingerprint("http://host/x")
    assert fingerprint("http://host/x") != fingerprint("http://host/y")


def test_a_dataset_is_recorded_without_the_password_of_its_url() -> None:
    name, uri = shown_place("https://me:hunter2@host/data/books?token=hunter2")
    assert (name, uri) == ("books", "https://***@host/data/books?token=***")
    assert shown_place(Path("/data/books")) == ("books", "/data/books")
