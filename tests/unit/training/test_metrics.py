import json
from pathlib import Path

from brt_dist.training.metrics import FILE_NAME, EventLog


def test_events_follow_a_line_that_a_killed_attempt_cut(tmp_path: Path) -> None:
    first = EventLog(tmp_path, attempt=1, enabled=True)
    first.write("step", step=1, loss=2.5)
    first.close()
    with open(tmp_path / FILE_NAME, "ab") as file:
        file.write(b'{"event": "step", "st')
    second = EventLog(tmp_path, attempt=2, enabled=True)
    second.write("step", step=2, loss=2.25)
    second.close()
    lines = (tmp_path / FILE_NAME).read_text().splitlines()
    events = [json.loads(lines[0]), json.loads(lines[2])]
    assert [(e["event"], e["attempt"], e["step"], e["loss"]) for e in events] == [
        ("step", 1, 1, 2.5),
        ("step", 2, 2, 2.25),
    ]


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    log = EventLog(tmp_path, attempt=1, enabled=False)
    log.write("step", step=1)
    log.close()
    assert not (tmp_path / FILE_NAME).exists()
