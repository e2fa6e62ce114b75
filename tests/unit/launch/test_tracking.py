"""What is sent to a tracking server, once, and what may be shown of its address."""

import ast
import dataclasses
import json
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brt_dist.config.loading import flatten, load
from brt_dist.config.schema import TrackingConfig
from brt_dist.errors import ConfigError
from brt_dist.event_log import EventReader
from brt_dist.events import CheckpointEvent, EvaluationEvent, Event, StepEvent, SystemEvent, from_json
from brt_dist.run_directory import RunDirectory
from launch.nodes.system_metrics import SystemSampler
from launch.run.dataset_record import dataset_name
from launch.run.redact import redact
from launch.run.submission import Submission
from launch.tracking import facts
from launch.tracking.model import CODE, requirements
from launch.tracking.names import FIRST, METRICS, evaluated, metric
from launch.tracking.params import params, sizes
from launch.tracking.rows import Row, Rows, Tag, TextFile
from launch.tracking.state import SyncState
from launch.tracking.uri import fingerprint, page_command, page_link, tracking_uri
from launch.train import check_with_data
from tests.datasets import make_dataset


def parsed(*events: dict[str, Any]) -> list[Event]:
    found = [from_json(event) for event in events]
    assert None not in found
    return [event for event in found if event is not None]


def step(number: int, at: float, **values: Any) -> dict[str, Any]:
    return {"event": "step", "time": at, "attempt": 1, "step": number, **values}


def test_rows_have_the_times_of_the_events() -> None:
    rows = Rows()
    found = list(rows.of(parsed(step(3, 12.3456, loss=1.5, note="text", flag=True))))
    assert found == [Row("loss/train", 1.5, 12346, 3)]
    assert rows.sent == {"step": 3}


def test_evaluations_are_curves_of_their_own() -> None:
    event = {"event": "evaluation", "time": 1.0, "attempt": 1, "step": 3, "dataset": "validation", "memory": "cleared"}
    rows = Rows({"step": 9})
    carried = parsed({**event, "memory": "carried", "bits_per_token": 1.75})
    assert list(rows.of(carried)) == [Row("bits_per_token/validation", 1.75, 1000, 3)]
    later = Rows(rows.sent, rows.carried)  # another batch: what memory gains is the difference
    assert list(later.of(parsed({**event, "bits_per_token": 2.0}))) == [
        Row("bits_per_token/validation_cleared", 2.0, 1000, 3),
        Row("memory_gain/validation", 0.25, 1000, 3),
    ]
    other = parsed({**event, "step": 4, "bits_per_token": 2.5})  # without its carried half there is no difference
    assert [row.key for row in later.of(other) if isinstance(row, Row)] == ["bits_per_token/validation_cleared"]


@pytest.mark.parametrize("place", ["/data/held out/é(1)", "../data/./held out//é(1)"])
def test_a_place_becomes_a_name_that_mlflow_takes(place: str) -> None:
    from mlflow.utils.validation import _validate_metric_name

    name = metric("evaluation.legal", data=evaluated(place, "state cleared"))
    assert name == "objective_legal/data/held out/é_1__state_cleared"
    _validate_metric_name(name)


def test_parts_of_a_step_are_on_the_tab_of_system_metrics() -> None:
    event = {"event": "parts", "time": 1.0, "attempt": 1, "step": 3, "forward": 0.5, "tensor": 0.25}
    rows = Rows()
    assert list(rows.of(parsed(event, event))) == [
        Row("system/step/forward_seconds", 0.5, 1000, 3),
        Row("system/step/tensor_seconds", 0.25, 1000, 3),
    ]


def test_a_run_keeps_the_names_with_which_it_began(tmp_path: Path) -> None:
    RunDirectory(tmp_path).tracking.mkdir()
    RunDirectory(tmp_path).sync_state.write_text(json.dumps({"server": "a", "run_id": "id", "offset": 7}))
    state = SyncState.load(tmp_path, "a")
    assert (state.run_id, state.offset, state.names) == ("id", 7, FIRST)
    event = {"event": "evaluation", "time": 1.0, "attempt": 1, "step": 3, "dataset": "validation", "memory": "cleared"}
    rows = Rows(names=state.names)
    found = list(rows.of(parsed(step(3, 1.0, loss=1.5), {**event, "bits_per_token": 2.0})))
    assert [row.key for row in found if isinstance(row, Row)] == ["loss", "validation/cleared/bits_per_token"]
    assert SyncState.load(tmp_path, "another").names > FIRST  # a new run in another store


def test_every_number_of_an_event_has_a_name_and_the_docs_have_all_names() -> None:
    for kind in (StepEvent, EvaluationEvent, CheckpointEvent):
        numbers = {f.name for f in dataclasses.fields(kind) if "int" in str(f.type) or "float" in str(f.type)}
        for name in numbers - {"time", "attempt", "step"}:
            assert f"{kind.kind}.{name}" in METRICS
    docs = (Path(__file__).parents[3] / "docs" / "tracking.md").read_text()
    for names in METRICS.values():
        prefix, _, _ = names.now.rpartition("/")
        group = re.sub(r"\{.*?\}", "...", prefix)
        assert f"`{group}/" in docs, names.now
    # what people look for is first in the order of the alphabet, in which MLflow's page shows the groups
    shown = {one.now.partition("/")[0] for one in METRICS.values()} - {"system"}
    assert sorted(shown)[:3] == ["bits_per_token", "loss", "memory_gain"]
    assert metric("checkpoint.bytes") == "system/checkpoint/bytes"


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
    assert list(Rows().of(parsed(*events))) == [
        Row("system/memory/layer_2/rms", 0.5, 1000, 4),
        Row("system/memory/layer_2/kept", 0.9, 1000, 4),
        Row("warnings/skip_count", 1.0, 2000, 4),
        Row("warnings/straggler_rank", 3.0, 3000, 5),
        Row("warnings/straggler_seconds", 2.0, 3000, 5),
        Row("warnings/straggler_count", 1.0, 3000, 5),
    ]


def test_samples_are_text_files() -> None:
    made = {"document": 3, "prompt": "Once upon", "text": " a time"}
    assert list(Rows().of(parsed({"event": "sample", "time": 1.0, "attempt": 1, "step": 40, "samples": [made]}))) == [
        TextFile("samples/step_00000040.txt", "document 3\nOnce upon\n>>>  a time\n")
    ]


def test_samples_of_a_node_are_numbered_and_named_as_mlflow_does() -> None:
    samples = [SystemEvent(time=float(at), values={"gpu_0_power_usage_watts": 300.0 + at}) for at in (1, 2)]
    assert list(Rows().of_node(samples, "node-a", 7)) == [
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
    assert list(Rows().of(parsed(*events))) == [
        Tag("attempts", "2"),
        Tag("layout", "tensor=2 data=1"),
        Row("system/checkpoint/seconds", 1.0, 1000, 5),
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
    rows = Rows()
    found: list[Row | Tag | TextFile] = []
    while events:
        count = data.draw(st.integers(1, len(events)))
        found += rows.of(parsed(*events[:count]))
        events = events[count:]
    curve = [row for row in found if isinstance(row, Row) and row.key == "loss/train"]
    assert [row.step for row in curve] == list(range(1, max(trained) + 1))
    assert len({(row.key, row.step) for row in found if isinstance(row, Row)}) == len(found)
    # the loss that counts is that of the last attempt that trained the step
    last_of = {row.step: row.value for row in curve}
    for row in found:
        if isinstance(row, Row) and row.key.startswith("loss/train_attempt_"):
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


def test_runs_of_a_folder_share_a_store_and_the_command_for_the_page_shows_all_of_them(tmp_path: Path) -> None:
    runs = tmp_path / "my runs"
    for run in (runs / "a", runs / "b"):
        run.mkdir(parents=True)
        assert tracking_uri(TrackingConfig(), run) == f"sqlite:///{runs}/mlflow.db"
        command = page_command(TrackingConfig(), run)
        assert command == f"mlflow ui --backend-store-uri 'sqlite:///{runs}/mlflow.db' --host 127.0.0.1"
    old = RunDirectory(runs / "b").mlflow_store  # a run of an older version stays where it is
    old.parent.mkdir()
    old.touch()
    assert tracking_uri(TrackingConfig(), runs / "b") == f"sqlite:///{old}"
    assert tracking_uri(TrackingConfig(uri="http://host"), runs / "b") == "http://host"
    assert tracking_uri(TrackingConfig(), Path("/proc")) == "sqlite:////proc/tracking/mlflow.db"  # a volume of its own


def test_the_page_of_a_run_is_that_of_model_training(tmp_path: Path) -> None:
    remote = TrackingConfig(uri="https://user:hunter2@host:5000/")
    assert page_command(remote, tmp_path) == "open https://***@host:5000"
    state = SyncState(fingerprint("https://user:hunter2@host:5000/"), experiment_id="7", run_id="abc")
    state.save(tmp_path)
    page = "https://***@host:5000/#/experiments/7/runs/abc?workflowType=machine_learning"
    assert page_command(remote, tmp_path) == f"open {page}" and page_link(remote, tmp_path) == page
    assert page_link(TrackingConfig(), tmp_path) == "http://127.0.0.1:5000"  # another store: not sent yet


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


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("https://me:hunter2@host/data/books?token=hunter2", "books"),
        (Path("/data/books"), "books"),
        (Path("/corpora/books/train"), "books/train"),
        (Path("/work/quickstart/data/validation"), "quickstart/data/validation"),
        ("s3://bucket/pile/train/", "pile/train"),
        (Path("/train"), "train"),
    ],
)
def test_datasets_are_named_after_themselves(place: Path | str, name: str) -> None:
    assert dataset_name(place) == name


def test_params_are_what_shapes_a_run(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text(json.dumps({"tokens": 6400}))
    text = f"""\
data: {{dataset: {tmp_path}}}
parallel: {{zero: {{reduce_bucket: 1000}}}}
run: {{directory: runs/a, steps: 200}}
"""
    config = load([text]).config
    found = params(config)
    assert (found["model.width"], found["run.steps"], found["optimizer.name"]) == ("1024", "200", "adamw")
    assert found["parallel.zero.reduce_bucket"] == "1000" and "parallel.zero.pin_memory" not in found
    # where it runs, how it is watched, what is unset
    assert not {key for key in found if key.startswith(("launch.slurm", "launch.kubernetes", "run.tracking"))}
    assert not {"None", "[]", "()"} & set(found.values()) and len(found) < len(flatten(config)) / 2
    plan = {"parameters": 1234, "tokens_per_step": 64, "flops_per_step": 1.5}
    plan["fullest_rank"] = {"parameters": 1, "weights": 1, "optimizer": 1, "carried": 1}  # type: ignore[assignment]
    assert sizes(config, parsed({"event": "attempt", "attempt": 1, "plan": plan})) == {
        "parameters": "1234",
        "tokens_per_step": "64",
        "tokens": "12800",
        "epochs": "2",
    }
    assert sizes(config, []) == {}


def test_the_code_in_a_logged_model_needs_nothing_of_ours() -> None:
    tree = ast.parse(CODE.read_text())
    imported = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    installed = {re.split("[=<>]", requirement)[0] for requirement in requirements()}
    assert imported and {name.partition(".")[0] for name in imported} <= installed


def test_a_model_that_no_export_knows_is_refused_before_the_run(tmp_path: Path) -> None:
    folder = make_dataset(tmp_path, ["a text of some length " * 20] * 4).folder
    text = f"""\
model: {{layers: 2, width: 16, heads: 2, head_dim: 8, window: 8, repeat: 2, mixers: {{window: {{}}}}}}
data: {{dataset: {folder}, segment: 16, streams: 2}}
optimizer: {{warmup_steps: 1}}
run: {{directory: {tmp_path / "run"}, steps: 2, tracking: {{register_model: bard}}}}
"""
    with pytest.raises(ConfigError, match=r"model\.repeat=2: not in the exported code"):
        check_with_data(load([text]).config)
    check_with_data(load([text.replace("register_model: bard", "log_model: false")]).config)
