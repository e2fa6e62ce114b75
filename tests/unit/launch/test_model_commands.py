"""`brt eval`, `brt generate` and `brt_dist.load`, on an exported model that was not trained."""

import json
import math
import runpy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import brt_dist
from brt_dist.config.schema import ModelConfig
from brt_dist.data.tokenizers import BYTES_FILE
from brt_dist.export.weights import Weights
from brt_dist.kinds import WEIGHT_FORMATS
from brt_dist.model.model import BlockRecurrentModel
from brt_dist.model.parameters import logical_parameters
from brt_dist.parallel.layout import single_process
from launch.cli import main
from tests.datasets import make_dataset

TEXTS = ["One document.\n" * 5, "Another, with words in it. " * 9, "short"]
WINDOW = 8


@pytest.fixture(scope="module", autouse=True)
def world() -> Iterator[None]:
    with single_process():
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tmp_path_factory.mktemp("exported") / "model", 5)


def export(out: Path, seed: int, tokenizer: bytes | None = BYTES_FILE) -> Path:
    sizes = {"layers": 2, "width": 16, "heads": 2, "head_dim": 8, "window": WINDOW, "vocab_size": 256}
    mixers = {"window": {}, "recurrent": {"layers": [1], "states": 4}}
    config = ModelConfig.model_validate({**sizes, "mixers": mixers, "ffns": {"relu": {"width": 32}}})
    network = BlockRecurrentModel(config, seed=seed)
    tensors = {p.name: p.whole([p.local.detach()]) for p in logical_parameters(network)}
    WEIGHT_FORMATS["safetensors"].write(Weights.of(config, tensors, tokenizer), out)
    return out


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data"), TEXTS).folder


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        main(list(map(str, arguments)))
    out, errors = capsys.readouterr()
    assert isinstance(end.value.code, int) and "Traceback" not in errors
    return end.value.code, out, errors


def test_a_dataset_and_its_text_measure_the_same(
    model: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = tmp_path / "texts.jsonl"
    lines.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    plot = tmp_path / "positions.png"
    places = ("--data", dataset, "--data", dataset.parent / "corpus", "--data", lines)
    code, out, _ = run(capsys, "eval", model, *places, "--json", "--segment", 16, "--plot", plot)
    found = json.loads(out)
    assert code == 0 and plot.read_bytes().startswith(b"\x89PNG")
    one, *others = found["results"]
    assert one["documents"] == 3 and one["words"] == sum(len(text.split()) for text in TEXTS)
    assert one["text_bytes"] == one["tokens"] == sum(len(text) - 1 for text in TEXTS)
    assert one["carried"]["bits_per_byte"] == pytest.approx(one["carried"]["nats"] / math.log(2) / one["text_bytes"])
    for other in others:
        assert other["carried"]["nats"] == pytest.approx(one["carried"]["nats"], abs=1e-5)
        assert other["cleared"]["nats"] == pytest.approx(one["cleared"]["nats"], abs=1e-5)
    code, out, _ = run(capsys, "eval", model, "--data", dataset, "--parts", "--segment", 16)
    assert code == 0 and "lost by clearing" in out and "state cleared" in out and "cache cleared" in out
    assert "layer 1" in out and "Effective rank of the states" in out and "from the states" in out
    for setting in ("tensor=2", "parallel.tensor"):
        code, _, errors = run(capsys, "eval", model, setting, "--data", dataset)
        assert code == 10 and "as in parallel.tensor=2" in errors
    code, _, errors = run(capsys, "eval", model, "parallel.tensor=3", "--data", dataset)
    assert code == 10 and "nearest" in errors
    code, out, _ = run(capsys, "eval", model, "--data", dataset, "--documents", 2, "--carried-only")
    assert code == 0 and "2 documents" in out and "cleared" not in out


def test_what_eval_cannot_read_is_told(
    model: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = make_dataset(tmp_path / "bpe", [text * 40 for text in TEXTS], tokenizer="bpe:300").folder
    bare = export(tmp_path / "bare", 1, tokenizer=None)
    for arguments, code, said in (
        ((model, "--data", other), 11, "was built with a different tokenizer"),
        ((model, "--data", tmp_path / "no"), 11, "no such file"),
        ((tmp_path, "--data", dataset), 12, ""),
        ((model, "--data", dataset, "--segment", 12), 10, "nearest: 16"),
        ((model, "--data", dataset, "--track"), 10, "not a run directory"),
        ((bare, "--data", dataset.parent / "corpus"), 11, "--tokenizer FILE"),
    ):
        found, _, errors = run(capsys, "eval", *arguments)
        assert found == code and said in errors
    code, out, _ = run(capsys, "eval", bare, "--data", dataset, "--carried-only")
    assert code == 0 and "bits/byte" not in out and "bits/token" in out


def test_generate_streams_stops_and_continues(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, whole, _ = run(capsys, "generate", model, "--prompt", "One doc", "--tokens", 40, "--seed", 3)
    assert code == 0
    memory = tmp_path / "memory"
    _, first, errors = run(
        capsys, "generate", model, "--prompt", "One doc", "--tokens", 13, "--seed", 3, "--save-memory", memory
    )
    assert "20 tokens" in errors
    _, rest, _ = run(capsys, "generate", model, "--load-memory", memory, "--tokens", 27, "--seed", 3, "--json")
    found = json.loads(rest)["samples"][0]
    assert found["ended"] == "length" and found["tokens"] == 27
    # a character cut in two by the end of the first part is shown as such there
    assert whole.strip("\n\ufffd").startswith(first.strip("\n\ufffd"))
    assert whole.rstrip("\n").endswith(found["text"].lstrip("\ufffd"))

    stop = whole[5:7]
    _, out, _ = run(capsys, "generate", model, "--prompt", "One doc", "--tokens", 40, "--seed", 3, "--stop", stop)
    assert out == whole[: whole.index(stop)] + "\n"

    arguments = ("--prompt", "One doc", "--prompt", "x", "--samples", 2, "--tokens", 9, "--seed", 3)
    _, out, _ = run(capsys, "generate", model, *arguments, "--json")
    samples = json.loads(out)["samples"]
    assert [sample["prompt"] for sample in samples] == [0, 0, 1, 1]
    assert len({sample["text"] for sample in samples}) == 4 and whole.startswith(samples[0]["text"].rstrip("\ufffd"))


def test_what_generate_cannot_do_is_told(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = export(tmp_path / "other", 6)
    memory = tmp_path / "memory"
    run(capsys, "generate", model, "--prompt", "a", "--tokens", 1, "--save-memory", memory)
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe")
    for arguments, code, said in (
        ((model,), 11, "no prompt given"),
        ((model, "--prompt", ""), 11, "the prompt is empty"),
        ((model, "--prompt", "a", "--top-p", 3), 10, "top_p=3.0"),
        ((model, "--prompt-file", tmp_path / "no"), 11, "cannot read"),
        ((model, "--prompt-file", binary), 11, "not UTF-8"),
        ((model, "--prompt", "a", "--prompt-file", binary), 11, "not both"),
        ((model, "--prompt", "a", "--samples", 2, "--save-memory", memory), 11, "one prompt and one sample"),
        ((other, "--load-memory", memory), 12, "of another model"),
        ((model, "--load-memory", binary), 12, "not a memory"),
    ):
        found, _, errors = run(capsys, "generate", *arguments)
        assert found == code and said in errors, arguments


def test_serving_other_machines_needs_a_token(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = tmp_path / "token"
    empty.write_text("\n")
    for arguments, code, said in (
        (("--host", "0.0.0.0"), 10, "can be reached by other machines"),
        (("--token-file", empty), 10, "is empty"),
        (("--token-file", tmp_path), 18, "cannot read the token"),
    ):
        found, _, errors = run(capsys, "serve", model, *arguments)
        assert found == code and said in errors


def test_the_example(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text.txt").write_text(TEXTS[1])
    monkeypatch.setattr("sys.argv", ["use.py", str(model), str(tmp_path / "text.txt")])
    runpy.run_path("examples/use.py", run_name="__main__")
    said = capsys.readouterr().out
    assert f"{len(TEXTS[1]) - 1} tokens: " in said and said.count("... ") == 2
    assert f"after {len(TEXTS[1]) // WINDOW * WINDOW} tokens" in said


def test_the_library_in_a_few_lines(model: Path) -> None:
    with brt_dist.load(str(model)) as loaded:
        greedy = brt_dist.Sampling(temperature=0)
        one, two = loaded.generate(["One document", "x"], tokens=12, sampling=greedy)
        assert len(one.tokens) == 12 and two.tokens != one.tokens

        text, memory = loaded.encode("One document"), loaded.blank_memory()
        known = text + one.tokens
        blocks = torch.tensor([known + [0] * (-len(known) % WINDOW)])
        starts = torch.zeros(1, blocks.shape[1] // WINDOW, dtype=torch.bool)
        starts[0, 0] = True
        logits, memory = loaded.read(blocks, memory, starts)
        assert logits[0, len(text) - 1 : len(known) - 1].argmax(-1).tolist() == one.tokens
        assert set(memory[1]) == {"keys", "values", "state"}
        assert loaded.evaluate(TEXTS).tokens == sum(len(text) - 1 for text in TEXTS)
