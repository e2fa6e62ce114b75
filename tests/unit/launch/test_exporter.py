"""What Prometheus is told of a run; and that the dashboard asks for nothing else."""

import json
import re
import threading
import urllib.request
from pathlib import Path

import pytest

from brt_dist.errors import PlatformError
from launch.views.exporter import serve

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
    with serve([run], "127.0.0.1", 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = server.server_address[1]
        text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30).read().decode()
        with pytest.raises(PlatformError, match="try another --port"):
            serve([run], "127.0.0.1", port)
        server.shutdown()
    label = f'{{run="{tmp_path}/a \\"run\\""}}'
    for line in (f"brt_loss_nats{label} 2.5", f"brt_step{label} 7", f"brt_checkpoint_step{label} 7"):
        assert line in text.splitlines()
    assert "# TYPE brt_tokens_total counter" in text
    asked = set(re.findall(r"brt_[a-z_]+", (ROOT / "cluster/monitoring/grafana-dashboard.json").read_text()))
    assert asked <= set(re.findall(r"^(brt_[a-z_]+)\{", text, re.MULTILINE))
