"""Config files and overrides: precedence, provenance, and messages."""

import json
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator

from brt_dist.config.keys import leaf_keys
from brt_dist.config.loading import dump, flatten, load, recorded
from brt_dist.config.schema import Config
from brt_dist.errors import CheckpointError, ConfigError, ExitCode

BASE = """\
data:
  dataset: books
run:
  directory: runs/a
  steps: 10
"""


def refusal(*arguments: object) -> str:
    with pytest.raises(ConfigError) as error:
        load(*arguments)  # type: ignore[arg-type]
    assert error.value.exit_code == ExitCode.BAD_CONFIG
    return str(error.value)


def test_defaults_file_and_command_line_in_that_order(tmp_path: Path) -> None:
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text(BASE + "optimizer:\n  learning_rate: 1e-3\n  warmup_steps: 5\n")
    second.write_text("optimizer: {warmup_steps: 7}\n")
    resolved = load(
        [first, second], ["run.steps=20", "model={layers: 3, recurrent_layers: [-1, 0]}", "run.name=2026-01-01"]
    )
    config, origin = resolved.config, resolved.provenance
    assert (config.optimizer.learning_rate, config.optimizer.warmup_steps, config.run.steps) == (1e-3, 7, 20)
    recurrent = config.model.mixers["recurrent"].layers
    assert (config.model.layers, recurrent, config.run.name) == (3, (-1, 0), "2026-01-01")
    assert config.run.directory == Path("runs/a")
    assert origin["optimizer.learning_rate"] == f"{first}:7"
    assert origin["optimizer.warmup_steps"] == f"{second}:1"
    assert origin["run.steps"] == origin["model.layers"] == "command line"
    assert origin["model.width"] == "default"
    assert set(origin) == set(flatten(config)) <= set(leaf_keys(Config))


def test_dump_loads_to_the_same_config() -> None:
    changes = ["optimizer.eps=1e-12", "run.name='a: b # c'", "model.vocab_size=300", "launch.ray_address='h:6379'"]
    config = load(BASE, changes).config
    assert load(dump(config)).config == config
    assert load(dump(load(dump(config)).config)).config == config


def test_null_on_the_command_line() -> None:
    config = load(BASE + "launch:\nmodel: {vocab_size: 5}\n", ["model.vocab_size=", "optimizer.clip_norm=null"]).config
    assert config.model.vocab_size is None
    assert config.optimizer.clip_norm is None


@pytest.mark.parametrize(
    ("text", "overrides", "expected"),
    [
        ("model:\n  layrs: 2\n", [], "<text>:2: unknown key model.layrs; nearest: model.layers"),
        ("", ["optimiser.eps=1"], "command line: unknown key optimiser; nearest: optimizer"),
        ("steps: 3\n", [], "<text>:1: unknown key steps; nearest: run.steps"),
        ("", ["zzz=1"], "command line: unknown key zzz; valid here: model, data,"),
        ("model:\n  layers: 2\n  layers: 3\n", [], "<text>:3: layers is set twice (first at <text>:2)"),
        ("model:\n  layers: 2.0\n", [], "<text>:2: model.layers must be a whole number, not 2.0"),
        ("model:\n  layers: true\n", [], "<text>:2: model.layers must be a whole number, not true"),
        ("model:\n  layers: '2'\n", [], "<text>:2: model.layers must be a whole number, not '2'"),
        ("model:\n  layers: 0\n", [], "<text>:2: model.layers must be greater than 0, not 0"),
        ("model:\n  dropout: 1\n", [], "<text>:2: model.dropout must be less than 1, not 1"),
        (
            "model:\n  cell: triple\n",
            [],
            "<text>:2: model.mixers.recurrent.cell must be 'skip', 'single' or 'dual', not 'triple'",
        ),
        ("model: 3\n", [], "<text>:1: model must be a section with keys layers, width"),
        ("", ["optimizer.learning_rate=.inf"], "command line: optimizer.learning_rate must be a finite number"),
        ("", ["optimizer.learning_rate=.nan"], "optimizer.learning_rate must be"),
        ("", ["run.seed=1" + "0" * 30], "run.seed must be"),
        ("", ["optimizer.betas=[0.9]"], "optimizer.betas is too short: item 2 is missing"),
        ("", ["optimizer.betas=[0.9, a]"], "item 2 of optimizer.betas must be a number, not 'a'"),
        ("", ["model.recurrent_layers=3"], "model.mixers.recurrent.layers must be a list, for example [-3], not 3"),
        ("", ["run.name=5"], "run.name must be text (put quotes around it), not 5"),
        ("", ["run.tracking.enabled=1"], "run.tracking.enabled must be true or false, not 1"),
        ("", ["run.steps"], "'run.steps' must have the form key.sub=value"),
        ("", ["=3"], "'=3' must have the form"),
        ("", ["run.steps=[1"], "'run.steps=[1': the text after '=' is not a YAML value"),
        ("model: [", [], "<text>:8: not valid YAML"),
        ("5: 6\n", [], "<text>:1: a key must be a plain name"),
        ("model: !!python/object/apply:os.system [ls]\n", [], "not valid YAML (could not determine a constructor"),
    ],
)
def test_message(text: str, overrides: list[str], expected: str) -> None:
    base = BASE if "data" not in text else ""
    message = refusal(text + base, overrides) if "[" not in text[-3:] else refusal(base + text + "\n\n", overrides)
    assert expected in message
    assert "pydantic" not in message and "Input should" not in message


def test_all_problems_in_one_message() -> None:
    message = refusal("model: {layers: x, cell: y}\nfoo: 1\n", ["data.streams=-1"])
    for part in (
        "model.layers",
        "model.mixers.recurrent.cell",
        "foo",
        "data.streams",
        "run.steps is missing",
    ):
        assert part in message
    assert message.startswith("6 problems in the config:")


def test_unreadable_files(tmp_path: Path) -> None:
    (tmp_path / "quickstart.yaml").write_bytes(b"\xff\xfe")
    assert f"no such file; nearest: {tmp_path / 'quickstart.yaml'}" in refusal(tmp_path / "quickstrat.yaml")
    assert "not UTF-8" in refusal(tmp_path / "quickstart.yaml")
    assert "cannot be read" in refusal(tmp_path)


def test_json_schema_describes_every_key() -> None:
    schema = Config.model_json_schema()
    assert schema["additionalProperties"] is False
    for definition in schema["$defs"].values():
        assert definition["additionalProperties"] is False
        assert all(item.get("description") for item in definition["properties"].values())
    json.dumps(schema)


BOTH = "{name: %s, betas: [0.9, 0.95], eps: 1.0e-08, weight_decay: 0.0, momentum: 0.9, decay_rate: 0.8, clip_norm: 1.0}"


@pytest.mark.parametrize(("name", "has", "lacks"), [("adamw", "betas", "momentum"), ("adafactor", "momentum", "betas")])
def test_older_configs_have_the_keys_of_both_optimizers(name: str, has: str, lacks: str) -> None:
    """Every config that 0.1.0 wrote has both optimizers' keys; the other's are dropped if left at their defaults."""
    resolved = load(f"{BASE}optimizer: {BOTH % name}")
    assert resolved.config == load(BASE, [f"optimizer.name={name}"]).config
    assert hasattr(resolved.config.optimizer, has) and not hasattr(resolved.config.optimizer, lacks)
    assert f"optimizer.{lacks}" not in resolved.provenance


def test_a_key_of_another_optimizer_is_refused() -> None:
    changed = (BOTH % "adafactor").replace("0.95]", "0.9]")
    message = refusal(f"{BASE}optimizer: {changed}")
    said = "<text>:6: optimizer.betas has no effect unless optimizer.name=adamw; set that, or remove the key"
    assert said in message.splitlines()[1]
    message = refusal(BASE, ["optimizer.decay_rate=0.7"])
    assert "command line: optimizer.decay_rate has no effect unless optimizer.name=adafactor" in message
    assert "unknown key optimizer.beta; nearest: optimizer.betas" in refusal(BASE, ["optimizer.beta=1"])


def test_what_a_checkpoint_recorded_is_read_whatever_the_unused_keys_were() -> None:
    """A value without effect does not keep a checkpoint from being read."""
    config = load(BASE, ["optimizer.name=adafactor", "optimizer.momentum=0.5"]).config
    record = config.model_dump(mode="json")
    record["optimizer"] |= {"betas": [0.5, 0.5], "eps": 1e-8, "weight_decay": 0.1}
    assert recorded(record, "step_1") == config
    record["optimizer"]["rate"] = 1
    with pytest.raises(CheckpointError, match=r"step_1: this version of brt cannot read the config in it .*rate"):
        recorded(record, "step_1")


def test_json_schema_accepts_what_is_loaded() -> None:
    validator = Draft202012Validator(Config.model_json_schema())
    least = {"data": {"dataset": "d"}, "run": {"directory": "r", "steps": 1}}
    for optimizer in ({}, {"learning_rate": 1e-3, "eps": 1e-9}, {"name": "adafactor", "momentum": 0.5}):
        assert validator.is_valid(least | {"optimizer": optimizer}), optimizer
    for optimizer in ({"momentum": 0.5}, {"name": "adafactor", "eps": 1e-9}, {"name": "sgd"}):
        assert not validator.is_valid(least | {"optimizer": optimizer}), optimizer
    every = json.loads(json.dumps(load(BASE).config.model_dump(mode="json")))
    assert validator.is_valid(every), next(validator.iter_errors(every)).message


def test_a_key_that_is_gone_may_stand_unset_in_what_a_run_wrote() -> None:
    zero = {"nvme_folder": None, "overlap": True}
    wrote = {"parallel": {"zero": zero}, "data": {"dataset": "x"}, "run": {"directory": "y", "steps": 1}}
    assert recorded(wrote, "a checkpoint").parallel.zero.overlap is True
    assert load([yaml.safe_dump(wrote)], []).config.parallel.zero.overlap is True
    zero["nvme_folder"] = "/disk"
    assert "nvme_folder" in refusal([yaml.safe_dump(wrote)], [])
