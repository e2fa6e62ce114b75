"""What Prometheus gets about a run; and that the dashboard needs nothing else."""

import json
import re
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from brt_dist.errors import PlatformError
from launch.views.exporter import serving

ROOT = Path(__file__).parents[3]
EVENTS = [
    {"event": "attempt", "attempt": 2, "time": 0.0, "start_step": 0},
    {"event": "step", "step": 7, "time": 1.0, "loss": 2.5, "tokens": 70, "tokens_per_second": 10.0, "step_seconds": 0.5}
    | {"grad_norm": 1.5, "learning_rate": 0.001, "data_wait_seconds": 0.25},
    {"event": "checkpoint", "step": 7, "time": 2.0, "path": "p"},
]


def test_the_last_numbers_are_served_on_this_machine_alone(tmp_path: Path) -> None:
    run = tmp_path / 'a "run"'
    run.mkdir()
    (run / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in EVENTS))
    with serving([run], "127.0.0.1", 0) as (port, _):
        text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30).read().decode()
        with pytest.raises(PlatformError, match="try another --port"), serving([run], "127.0.0.1", port):
            pass
        log = (run / "metrics.jsonl").read_text()
        (run / "metrics.jsonl").write_text(log + json.dumps({**EVENTS[1], "step": 8, "time": 3.0}) + "\n")
        later = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30).read().decode()
    found = {sample.name: sample for family in text_string_to_metric_families(text) for sample in family.samples}
    assert {sample.labels["run"] for sample in found.values()} == {f'{tmp_path}/a "run"'}
    for name, value in (("brt_loss_nats", 2.5), ("brt_step", 7), ("brt_checkpoint_step", 7), ("brt_tokens_total", 70)):
        assert found[name].value == value, name
    assert f'brt_step{{run="{tmp_path}/a \\"run\\""}} 8.0' in later.splitlines()
    assert "# TYPE brt_tokens_total counter" in text
    asked = set(re.findall(r"brt_[a-z_]+", (ROOT / "cluster/monitoring/grafana-dashboard.json").read_text()))
    assert asked <= set(re.findall(r"^(brt_[a-z_]+)\{", text, re.MULTILINE))
