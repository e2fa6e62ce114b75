"""What is sent to a tracking server, once, and what may be shown of its address."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brt_dist.config.schema import TrackingConfig
from launch.tracking.mlflow_run import shown_place
from launch.tracking.rows import Row, Tag, rows
from launch.tracking.state import SyncState
from launch.tracking.uri import fingerprint, page_command, redact, tracking_uri


def step(number: int, at: float, **values: Any) -> dict[str, Any]:
    return {"event": "step", "time": at, "attempt": 1, "step": number, **values}


def test_rows_have_the_times_of_the_events() -> None:
    sent: dict[str, int] = {}
    found = list(rows([step(3, 12.3456, loss=1.5, note="text", flag=True)], sent))
    assert found == [Row("loss", 1.5, 12346, 3)]
    assert sent == {"step": 3}


def test_evaluations_are_curves_of_their_own() -> None:
    event = {"event": "evaluation", "time": 1.0, "attempt": 1, "step": 3, "dataset": "validation", "memory": "cleared"}
    assert list(rows([{**event, "bits_per_token": 2.0}], {"step": 9})) == [
        Row("validation/cleared/bits_per_token", 2.0, 1000, 3)
    ]


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
    assert list(rows(events, {})) == [
        Tag("attempts", "2"),
        Tag("layout", "tensor=2 data=1"),
        Row("checkpoint/seconds", 1.0, 1000, 5),
        Tag("checkpoint", "checkpoints/step_00000005"),
    ]


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(1, 5)), min_size=1, max_size=6), st.data())
def test_whatever_is_trained_again_no_step_is_sent_twice(attempts: list[tuple[int, int]], data: st.DataObject) -> None:
    """Attempts as (steps lost at the resume, steps done), read in any portions."""
    events, last = [], 0
    for number, (lost, done) in enumerate(attempts):
        first = max(last - lost, 0) + 1
        last = first + done - 1
        events += [step(at, number + at / 10, loss=float(number)) for at in range(first, last + 1)]
    sent: dict[str, int] = {}
    found: list[Row | Tag] = []
    while events:
        count = data.draw(st.integers(1, len(events)))
        found += rows(events[:count], sent)
        events = events[count:]
    steps = [row.step for row in found if isinstance(row, Row)]
    assert steps == sorted(set(steps)) and steps[0] == 1 and steps == list(range(1, steps[-1] + 1))


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
