"""lm-evaluation-harness on an export for `transformers`, offline, on a task made of local files: `brt eval` agrees."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from brt_dist.data.in_memory import InMemoryDataset
from brt_dist.data.tokenizers import BYTES_FILE, load_tokenizer, parse_tokenizer
from brt_dist.evaluation.texts import size_of
from brt_dist.inference import load
from brt_dist.parallel.layout import single_process
from tests.datasets import make_dataset
from tests.end_to_end.test_transformers import ABSENT, KINDS, export

LM_EVAL = Path(os.environ.get("LM_EVAL") or Path(sys.prefix) / "lm_eval")
# The harness predicts the first token too, after a token of the user's choice; we begin the document with that one.
FIRST = "\n"
TEXTS = [FIRST + f"{sentence} " * 30 + "The end." for sentence in ("A text, read whole.", "Zwölf Boxkämpfer, naïvely.")]
TASK = """\
task: texts
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list: [{{metric: word_perplexity}}, {{metric: bits_per_byte}}]
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Of a Python that has torch, transformers and the harness, and not our libraries."""
    if not (LM_EVAL / "lm_eval").is_dir():
        pytest.skip(f"lm-evaluation-harness is not in {LM_EVAL}: make test-lm-eval")
    packages, home = tmp_path_factory.mktemp("packages"), tmp_path_factory.mktemp("home")
    for entry in Path(np.__file__).parents[1].iterdir():
        if not any(entry.name.lower().replace("-", "_").startswith(name) for name in (*ABSENT, "__editable__")):
            (packages / entry.name).symlink_to(entry)
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(home), "OMP_NUM_THREADS": "1"}
    return {**os.environ, "PYTHONPATH": f"{LM_EVAL}:{packages}", **offline}


@pytest.mark.parametrize("kind", ["skip", "single-lstm"])
@pytest.mark.parametrize("pieces", ["bytes", "bpe"])
def test_both_find_the_same(kind: str, pieces: str, tmp_path: Path, environment: dict[str, str]) -> None:
    assert kind in KINDS
    if pieces == "bpe":
        built = make_dataset(tmp_path / "data", [text * 5 for text in TEXTS], tokenizer="bpe:290").folder
        tokenizer = load_tokenizer(built / "tokenizer.json")
    else:
        tokenizer = parse_tokenizer(BYTES_FILE, "bytes")
    model = tmp_path / "model"
    with single_process():
        export(kind, model, tokenizer)
    (tmp_path / "texts.jsonl").write_text(
        "".join(json.dumps({"text": text.removeprefix(FIRST)}) + "\n" for text in TEXTS)
    )
    (tmp_path / "task.yaml").write_text(TASK.format(file=tmp_path / "texts.jsonl"))
    (first,) = tokenizer.encode(FIRST).tolist()
    arguments = f"pretrained={model},trust_remote_code=True,dtype=float32,prefix_token_id={first}"
    command = [sys.executable, "-S", "-P", "-m", "lm_eval", "--model", "hf", "--model_args", arguments, "--tasks"]
    command += ["texts", "--include_path", str(tmp_path), "--device", "cpu", "--output_path", str(tmp_path / "out")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    (results,) = (tmp_path / "out").rglob("results*.json")
    theirs = json.loads(results.read_text())["results"]["texts"]

    documents = InMemoryDataset([np.array([first, *tokenizer.encode(text.removeprefix(FIRST))]) for text in TEXTS], 290)
    with load(str(model)) as loaded:
        ours, size = loaded.evaluate(documents), size_of(documents, tokenizer)
    assert theirs["bits_per_byte,none"] == pytest.approx(ours.bits_per_byte(size.text_bytes), rel=1e-5)
    assert theirs["word_perplexity,none"] == pytest.approx(ours.word_perplexity(size.words), rel=1e-4)
    print(kind, pieces, theirs["bits_per_byte,none"], ours.bits_per_byte(size.text_bytes))
