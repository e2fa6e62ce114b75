"""Make the data of this folder with an old version of the code; see README.md.

git worktree add OLD d264307
cd OLD && PYTHONPATH=OLD python THIS_FILE OUT
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SPEECHES = Path(__file__).parent.parent / "speeches.jsonl"
LENGTHS = range(60, 500, 70)  # characters of the documents, each the beginning of a speech
STEPS, MORE_STEPS = 4, 8

# Arithmetic that is the same on every x86-64 machine: no vector units beyond SSE2, one thread.
ENVIRONMENT = {
    "ATEN_CPU_CAPABILITY": "default",
    "MKL_CBWR": "COMPATIBLE",
    "MKL_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
}
CONFIGS = {
    # One process; feedback, so every layer depends on the carried state.
    "adamw": """\
model: {{layers: 3, width: 8, heads: 2, head_dim: 4, mlp_width: 16, window: 8, states: 4, recurrent_layers: [1],
  cell: skip, gate: fixed, feedback: true, dropout: 0.1}}
data: {{dataset: {data}, validation: {data}, segment: 32, streams: 4}}
parallel: {{tensor: 1, micro_batch: 2}}
optimizer: {{name: adamw, learning_rate: 3.0e-3, schedule: cosine, warmup_steps: 2, weight_decay: 0.01}}
run: {{name: adamw, directory: {run}, steps: {steps}, precision: fp32, device: cpu, checkpoint_every: 4,
  evaluate_every: 4, evaluation_steps: 2, sample_tokens: 8, memory_every: 2, tracking: {{enabled: false}}}}
""",
    # Two ranks, each with half of the optimizer state; an attempt that failed.
    "adafactor": """\
model: {{layers: 3, width: 8, heads: 2, head_dim: 4, mlp_width: 16, window: 8, states: 4, recurrent_layers: [-2, -1],
  cell: dual, gate: lstm, positions: rotary, dropout: 0.1}}
data: {{dataset: {data}, segment: 32, streams: 4}}
parallel: {{data: 2, micro_batch: 1, zero_stage: 1}}
optimizer: {{name: adafactor, learning_rate: 3.0e-2, schedule: rsqrt, warmup_steps: 2, clip_norm: null}}
run: {{name: adafactor, directory: {run}, steps: {steps}, precision: fp32, device: cpu, checkpoint_every: 4,
  evaluation_steps: 2, memory_every: 2, guards: {{straggler_every: 2}}, tracking: {{enabled: false}}}}
launch: {{recovery: {{pause_seconds: 0.1}}}}
""",
}


def main() -> None:
    out = Path(sys.argv[1]).absolute()
    out.mkdir(parents=True)
    os.environ.update(ENVIRONMENT)
    with tempfile.TemporaryDirectory() as scratch:
        corpus = Path(scratch) / "corpus"
        corpus.mkdir()
        for length, line in zip(LENGTHS, SPEECHES.read_text().splitlines(), strict=False):
            (corpus / f"{length}.txt").write_text(json.loads(line)["text"][:length])
        brt("data", "build", str(corpus), "--out", str(out / "dataset"), "--tokenizer", "bytes", "--workers", "0")
    for name, text in CONFIGS.items():
        run = out / name / "run"
        config = out / f"{name}.yaml"
        config.write_text(text.format(data=out / "dataset", run=run, steps=STEPS))
        train(config, kill=name == "adafactor")
        shutil.copytree(run, out / name / "stopped")
        train(config, f"run.steps={MORE_STEPS}")  # resumes
        config.unlink()
        (out / name / "resumed").mkdir()
        for kept in ("metrics.jsonl", f"checkpoints/step_{MORE_STEPS:08d}"):
            (run / kept).rename(out / name / "resumed" / Path(kept).name)
        shutil.rmtree(run)
        (out / name / "stopped").rename(run)
        shutil.rmtree(run / "plots")
    for unneeded in ("lengths.png", "README.md", ".build.lock"):
        (out / "dataset" / unneeded).unlink()
    for lock in out.rglob(".lock"):
        lock.unlink()


def train(config: Path, *overrides: str, kill: bool = False) -> None:
    """kill: end the first rank that starts with SIGKILL, so that the run has an attempt that failed."""
    process = subprocess.Popen([sys.executable, "-m", "launch.cli", "train", str(config), *overrides])
    while kill and process.poll() is None:
        ranks = [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if is_rank(pid, config.stem)]
        if ranks:
            environment = Path(f"/proc/{ranks[-1]}/environ").read_text().split("\0")
            if not {f"{name}={value}" for name, value in ENVIRONMENT.items()} <= set(environment):
                sys.exit(f"{ENVIRONMENT} did not reach the ranks")
            time.sleep(3)
            os.kill(ranks[-1], signal.SIGKILL)
            break
        time.sleep(0.02)
    if process.wait():
        sys.exit(f"brt train {config} ended with {process.returncode}")


def is_rank(pid: int, name: str) -> bool:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return b"brt_dist.worker" in words and any(word.endswith(f"{name}/run".encode()) for word in words)


def brt(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "launch.cli", *words], check=True)


if __name__ == "__main__":
    main()
