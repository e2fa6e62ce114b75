"""`brt export --to hf`, opened by `transformers` where neither this package nor its libraries are installed."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from brt_dist.config.schema import ModelConfig
from brt_dist.data.tokenizers import BYTES_FILE, Tokenizer, load_tokenizer, parse_tokenizer
from brt_dist.errors import ConfigError
from brt_dist.export.open import open_weights
from brt_dist.export.weights import Weights
from brt_dist.generation.decoder import Decoder
from brt_dist.kinds import WEIGHT_FORMATS
from brt_dist.model.model import BlockRecurrentModel
from brt_dist.model.parameters import logical_parameters
from brt_dist.parallel.layout import single_process
from launch.cli import brt
from launch.tracking.client import connect, experiment_id, find_or_make
from launch.tracking.model import send_model
from launch.tracking.state import SyncState
from tests.datasets import make_dataset

TRANSFORMERS = Path(sys.prefix) / "transformers"
ABSENT = ("megatron", "deepspeed", "ray", "brt_dist", "mlflow")
TEXTS = ["The first text, which is the longer one of the two: it has three blocks.", "A short one"]
WINDOW, NEW = 16, 40
SIZES: dict[str, Any] = {"layers": 3, "width": 32, "heads": 2, "head_dim": 16, "window": WINDOW}
CELL: dict[str, Any] = {"layers": [1], "states": 6, "mlp_width": 48}
KINDS: dict[str, dict[str, Any]] = {
    "rotary": {"mixers": {"window": {"positions": "rotary"}}, "logit_scale": "width"},
    "skip": {"mixers": {"window": {}, "recurrent": CELL}},
    "single-lstm": {
        "mixers": {"window": {"positions": "none"}, "recurrent": CELL | {"cell": "single", "gate": "lstm"}}
    },
    "dual-raw": {"mixers": {"window": {}, "recurrent": CELL | {"cell": "dual", "attention_scale": "raw"}}},
    "feedback": {"mixers": {"window": {}, "recurrent": CELL}, "feedback": True},
}

SCRIPT = """
import json, sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

for name in %(absent)s:
    try:
        __import__(name)
    except ImportError:
        continue
    sys.exit(f"{name} can be imported here")
texts = json.loads(sys.argv[1])
found = {}
for folder in sys.argv[2:]:
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True, pad_token="!")
    one = tokenizer(texts[0], return_tensors="pt").input_ids
    both = tokenizer(texts, return_tensors="pt", padding=True)
    with torch.no_grad():
        whole = model(one, labels=one)
        beams = model.generate(one, max_new_tokens=5, do_sample=False, num_beams=2)
        greedy = {"max_new_tokens": %(new)d, "do_sample": False}
        new = model.generate(both.input_ids, attention_mask=both.attention_mask, **greedy)
    found[folder] = {
        "ids": one[0].tolist(),
        "logits": whole.logits[0].tolist(),
        "loss": float(whole.loss),
        "beams": beams.shape[1],
        "new": new[:, both.input_ids.shape[1]:].tolist(),
        "text": tokenizer.decode(one[0]),
    }
    model.train()
    model(one, labels=one).loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
print(json.dumps(found))
"""


@pytest.fixture(scope="module", autouse=True)
def world() -> Iterator[None]:
    with single_process():
        yield


def export(kind: str, out: Path, tokenizer: Tokenizer) -> BlockRecurrentModel:
    config = ModelConfig.model_validate({**SIZES, "ffns": {"relu": {"width": 64}}, **KINDS[kind]})
    network = BlockRecurrentModel(config.model_copy(update={"vocab_size": tokenizer.vocab_size}), seed=4).eval()
    tensors = {p.name: p.whole([p.local.detach()]) for p in logical_parameters(network)}
    WEIGHT_FORMATS["hf"].write(Weights.of(network.config, tensors, tokenizer.file), out)
    return network


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a Python that has torch and transformers, and not our libraries."""
    if not TRANSFORMERS.is_dir():
        pytest.fail(f"{TRANSFORMERS} is missing: `make {TRANSFORMERS}/.installed` installs it")
    return environment_without(ABSENT, tmp_path_factory.mktemp("packages"))


def environment_without(absent: Sequence[str], packages: Path) -> dict[str, str]:
    for entry in Path(np.__file__).parents[1].iterdir():
        if not any(entry.name.lower().replace("-", "_").startswith(name) for name in (*absent, "__editable__")):
            (packages / entry.name).symlink_to(entry)
    return {**os.environ, "PYTHONPATH": f"{TRANSFORMERS}:{packages}", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
def test_logits_and_generation_are_ours(tmp_path: Path, elsewhere: dict[str, str]) -> None:
    corpus = [f"{text} " * 20 for text in TEXTS]
    bpe = load_tokenizer(make_dataset(tmp_path / "data", corpus, tokenizer="bpe:290").folder / "tokenizer.json")
    tokenizers = {kind: bpe if kind == "skip" else parse_tokenizer(BYTES_FILE, "bytes") for kind in KINDS}
    networks = {kind: export(kind, tmp_path / kind, tokenizers[kind]) for kind in KINDS}
    script = SCRIPT % {"absent": ABSENT, "new": NEW}
    done = subprocess.run(
        [sys.executable, "-S", "-P", "-c", script, json.dumps(TEXTS), *(str(tmp_path / kind) for kind in KINDS)],
        env=elsewhere | {"HF_HOME": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    for kind, network in networks.items():
        theirs, tokenizer = found[str(tmp_path / kind)], tokenizers[kind]
        ids = [tokenizer.encode(text).tolist() for text in TEXTS]
        assert theirs["ids"] == ids[0] and theirs["text"] == TEXTS[0] and theirs["beams"] == len(ids[0]) + 5
        ours = torch.stack([Decoder(network, 1).feed({0: ids[0][: end + 1]})[0] for end in range(len(ids[0]))])
        assert (ours - torch.tensor(theirs["logits"])).abs().max() < 1e-5, kind
        nats = torch.nn.functional.cross_entropy(ours[:-1], torch.tensor(ids[0][1:]))
        assert theirs["loss"] == pytest.approx(float(nats), abs=1e-5)
        decoder = Decoder(network, 2)
        feed, new = dict(enumerate(ids)), [[], []]  # type: ignore[var-annotated]
        for _ in range(NEW):
            chosen = decoder.feed(feed).argmax(-1).tolist()
            feed = {stream: [token] for stream, token in enumerate(chosen)}
            for stream, token in enumerate(chosen):
                new[stream].append(token)
        assert theirs["new"] == new, kind


SERVED = """
import json, sys
import mlflow
try:
    import brt_dist
    sys.exit("brt_dist can be imported here")
except ImportError:
    model = mlflow.pyfunc.load_model("models:/bard/1")
params = {"max_new_tokens": 12, "temperature": 0.0}
print(json.dumps(model.predict({"prompt": json.loads(sys.argv[1])}, params=params)))
"""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_logged_model_runs_without_this_package(tmp_path: Path) -> None:
    network = export("skip", tmp_path / "hf", tokenizer := parse_tokenizer(BYTES_FILE, "bytes"))
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client = connect(uri)
    experiment = experiment_id(client, "an experiment", uri)
    state = SyncState("here", run_id=find_or_make(client, experiment, "it", "a run"), experiment_id=experiment)
    send_model(uri, state, tmp_path / "hf", 7, "bard")
    (packages := tmp_path / "packages").mkdir()
    without_us = [name for name in ABSENT if name != "mlflow"]
    done = subprocess.run(
        [sys.executable, "-S", "-P", "-c", SERVED, json.dumps(TEXTS)],
        env=environment_without(without_us, packages)
        | {"HF_HOME": str(tmp_path / "cache"), "MLFLOW_TRACKING_URI": uri, "MLFLOW_DISABLE_TELEMETRY": "true"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    expected = []
    for text in TEXTS:
        decoder, feed, new = Decoder(network, 1), {0: tokenizer.encode(text).tolist()}, list[int]()
        for _ in range(12):
            feed = {0: [int(decoder.feed(feed)[0].argmax())]}
            new += feed[0]
        expected.append(tokenizer.decode(new))
    assert json.loads(done.stdout.splitlines()[-1]) == expected
    assert not (tmp_path / "mlruns").exists() and not Path("mlruns").exists()  # all in the store of the run


def test_it_is_imported_again_exactly(tmp_path: Path) -> None:
    tokenizer = parse_tokenizer(BYTES_FILE, "bytes")
    network = export("dual-raw", tmp_path / "hf", tokenizer)
    with open_weights(str(tmp_path / "hf")) as weights:
        assert weights.tokenizer == BYTES_FILE and weights.model == network.config
        for parameter in logical_parameters(network):
            assert torch.equal(weights.read(parameter.name), parameter.whole([parameter.local.detach()]))
    done = CliRunner().invoke(brt, ["import", str(tmp_path / "hf"), "--out", str(tmp_path / "imported")])
    assert done.exit_code == 0, done.output
    with open_weights(str(tmp_path / "imported")) as weights:
        assert weights.tokenizer == BYTES_FILE and weights.model == network.config
        for parameter in logical_parameters(network):
            assert torch.equal(weights.read(parameter.name), parameter.whole([parameter.local.detach()]))


def test_kinds_that_the_exported_code_lacks_are_refused(tmp_path: Path) -> None:
    config = ModelConfig.model_validate({**SIZES, "vocab_size": 256, "mixers": {"linear": {}}})
    network = BlockRecurrentModel(config, seed=1)
    tensors = {p.name: p.whole([p.local.detach()]) for p in logical_parameters(network)}
    with pytest.raises(ConfigError, match="no kind linear, only window, recurrent; nearest: --to safetensors"):
        WEIGHT_FORMATS["hf"].write(Weights.of(config, tensors), tmp_path / "out")
