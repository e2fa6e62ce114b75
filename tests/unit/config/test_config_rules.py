"""The cross-field rules: what they refuse, what they offer instead, and that the offer works."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brt_dist.config.costs import warnings
from brt_dist.config.data_rules import DatasetFacts
from brt_dist.config.deepspeed import deepspeed_config
from brt_dist.config.layout_rules import nearest_layout
from brt_dist.config.loading import dump, load
from brt_dist.config.rules import check
from brt_dist.config.schema import Config
from brt_dist.errors import ConfigError
from brt_dist.kinds import OPTIMIZERS

BASE = "data: {dataset: books}\nrun: {directory: runs/a, steps: 2000}\n"


def config_of(*overrides: str) -> Config:
    return load(BASE, list(overrides)).config


def refusal(config: Config, *facts: DatasetFacts) -> str:
    with pytest.raises(ConfigError) as error:
        check(config, *facts)
    return str(error.value)


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("parallel={data: 5, uneven_streams: true}",),
        ("parallel={tensor: 8, data: 2}", "launch.nodes=4"),  # on CPUs, ranks of a layer may be on several nodes
        ("optimizer.name=adafactor", "parallel={data: 2, zero_stage: 2}"),
        ("parallel={tensor: 2, pipeline: 2, data: 4, micro_batch: 2}", "launch.nodes=4"),
        ("parallel={data: 2, zero_stage: 2}",),
        ("parallel={pipeline: 2, data: 2, zero: {overlap: true, reduce_bucket: 1000000}}", "run.precision=bf16"),
        ("parallel={data: 8, zero_stage: 3, zero: {weights_within: 4, offload_parameters: cpu, prefetch_bucket: 9}}",),
        ("model.states=333", "parallel.tensor=2"),
        ("model.recurrent_layers=[]",),
        ("model.feedback=true", "parallel={tensor: 2, data: 4, sequence_parallel: true}", "model.positions=rotary"),
        ("model.recurrent_layers=[0, -1]", "model.layers=2"),
        ("optimizer.name=adafactor", "parallel.zero_stage=0", "run.precision=fp32"),
        ("parallel={tensor: 4, sequence_parallel: true, zero_stage: 3}",),
        ("parallel={tensor: 2, sequence_parallel: true}", "model.recurrent_layers=[]", "model.states=333"),
    ],
)
def test_accepted(overrides: tuple[str, ...]) -> None:
    check(config_of(*overrides), DatasetFacts(32, 256, "a"), DatasetFacts(1, 256, "a"))


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (("data.segment=1000",), ("data.segment=1000", "model.window=512", "nearest: data.segment=1024")),
        (("data.segment=100",), ("nearest: data.segment=512",)),
        (("parallel.tensor=3",), ("model.heads=8", "parallel.tensor=2 or model.heads=9", "model.ffns.relu.width=4096")),
        (("parallel.data=5",), ("data.streams=32", "5*1 = 5", "data.streams=30", "layout that works: ", "data=4")),
        (("parallel.micro_batch=64",), ("nearest: data.streams=64", "micro_batch=32")),
        (("parallel.pipeline=13",), ("every stage needs a layer", "nearest: parallel.pipeline=12")),
        (("parallel={pipeline: 2, zero_stage: 3}",), ("ZeRO 2 and 3 do not work", "nearest: parallel.zero_stage=1")),
        (
            ("parallel.zero.reduce_dtype=bf16", "run.precision=fp32"),
            ("would round fp32 gradients", "nearest: parallel.zero.reduce_dtype=fp32, or run.precision=bf16"),
        ),
        (
            ("parallel.zero.prefetch_bucket=1",),
            ("no effect with parallel.zero_stage=1", "nearest: leave parallel.zero.prefetch_bucket unset", "stage=3"),
        ),
        (
            ("parallel={zero_stage: 0, zero: {overlap: true}}", "run.precision=fp32"),
            ("no effect with parallel.zero_stage=0", "or parallel.zero_stage=1 or 2 or 3"),
        ),
        (
            ("parallel={pipeline: 2, zero: {overlap: true}}", "run.precision=fp32"),
            ("reduces after the last backward", "nearest: leave parallel.zero.overlap unset"),
        ),
        (
            ("parallel={data: 8, zero_stage: 3, zero: {weights_within: 3}}",),
            ("must divide parallel.data=8", "nearest: parallel.zero.weights_within=2"),
        ),
        (
            ("parallel={pipeline: 2, zero: {offload_optimizer: cpu}}",),
            ("tied embedding's two copies", "nearest: parallel.zero.offload_optimizer=none, or parallel.pipeline=1"),
        ),
        (
            ("optimizer.name=adafactor", "parallel.zero.offload_optimizer=cpu"),
            ("its update sums over ranks", "nearest: parallel.zero.offload_optimizer=none, or optimizer.name=adamw"),
        ),
        (("parallel={pipeline: 2, zero_stage: 0}",), ("drift apart", "nearest: parallel.zero_stage=1")),
        (("parallel.zero_stage=0", "run.precision=bf16"), ("fp32", "nearest: parallel.zero_stage=1")),
        (
            ("optimizer.name=adafactor", "parallel.zero_stage=3"),
            ("a slice of every parameter", "parallel.zero_stage=2"),
        ),
        (
            ("parallel.data=5",),
            ("every rank holds equally many", "or parallel.uneven_streams=true, with 9% of the micro-batches idle"),
        ),
        (("parallel.data=40", "parallel.uneven_streams=true"), ("40*1 = 40", "nearest: data.streams=40")),
        (
            ("parallel={tensor: 8, data: 2}", "launch.nodes=4", "run.device=cuda"),
            ("does not divide the 4 ranks of each of launch.nodes=4 nodes", "nearest: parallel.tensor=4"),
        ),
        (("parallel.sequence_parallel=true",), ("there is only one", "nearest: parallel.sequence_parallel=false")),
        (
            ("parallel={tensor: 2, sequence_parallel: true}", "model.states=333"),
            (
                "model.mixers.recurrent.states=333",
                "nearest: model.mixers.recurrent.states=334",
                "tensor=2 parallel.pipeline=1",
            ),
        ),
        (
            ("parallel={tensor: 2, sequence_parallel: true}", "data.segment=1023", "model.window=341"),
            ("data.segment=1023", "nearest: data.segment=1024"),
        ),
        (
            ("model.feedback=true", "model.recurrent_layers=[]"),
            ("no layer has a state", "nearest: model.mixers.recurrent.layers=[-1]"),
        ),
        (
            ("model.feedback=true", "parallel={pipeline: 2, data: 2}"),
            ("a later layer", "nearest: parallel.pipeline=1, or model.feedback=false", "pipeline=1 parallel.data=4 "),
        ),
        (
            (
                "parallel={tensor: 2, sequence_parallel: true}",
                "model={feedback: true, window: 511}",
                "data.segment=1022",
            ),
            ("model.window=511", "nearest: model.window=512, or parallel.sequence_parallel=false"),
        ),
        (("model.positions=rotary", "model.head_dim=15"), ("must be even", "nearest: model.head_dim=16")),
        (("parallel.data=2", "launch.nodes=3"), ("2 processes", "nearest: launch.nodes=2")),
        (("model.recurrent_layers=[12, -13]",), ("contains 12, -13", "from -12 to 11", "nearest: 11, -12")),
        (("model.recurrent_layers=[3, -9]",), ("lists a layer twice", "nearest: [3]")),
        (("optimizer.warmup_steps=2001",), ("longer than the run", "nearest: optimizer.warmup_steps=2000")),
        (("optimizer.betas=[0.9, 1.0]",), ("optimizer.betas=[0.9, 1.0]",)),
        (("run.directory=./books/",), ("the same folder",)),
    ],
)
def test_refused(overrides: tuple[str, ...], parts: tuple[str, ...]) -> None:
    message = refusal(config_of(*overrides))
    for part in parts:
        assert part in message


def test_all_problems_are_told_at_once() -> None:
    message = refusal(config_of("data.segment=1000", "parallel.tensor=3", "model.recurrent_layers=[12]"))
    assert message.startswith("this config cannot run; 4 problems:")
    assert message.endswith("nearest layout that works: " + message.rpartition("works: ")[2])


def test_rules_of_the_dataset() -> None:
    facts = DatasetFacts(30, 256, "a" * 64)
    message = refusal(config_of("model.vocab_size=300", "parallel.data=4"), facts, DatasetFacts(1, 256, "b" * 64))
    assert "nearest: model.vocab_size=256" in message
    assert "has 30 documents" in message and "nearest: data.streams=28" in message
    assert "built with a different tokenizer (bbbbbbbbbbbb)" in message
    assert "it is empty" in refusal(config_of(), DatasetFacts(0, 256, "a"))
    single = DatasetFacts(32, 256, "a", longest=1)
    assert "no document has two tokens" in refusal(config_of(), single)
    assert "data.validation" in refusal(config_of(), DatasetFacts(32, 256, "a"), single)


small = st.integers(1, 40)
configs: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {
        "model": st.fixed_dictionaries(
            {
                "layers": small,
                "heads": small,
                "mlp_width": small,
                "states": small,
                "window": st.integers(1, 4),
                "recurrent_layers": st.lists(st.integers(-6, 6), max_size=3),
                "feedback": st.booleans(),
                "head_dim": small,
                "positions": st.sampled_from(["t5", "rotary", "none"]),
            }
        ),
        "data": st.fixed_dictionaries({"dataset": st.just("d"), "segment": small, "streams": small}),
        "parallel": st.fixed_dictionaries(
            {
                "tensor": st.integers(1, 9),
                "pipeline": st.integers(1, 9),
                "data": st.integers(1, 9),
                "zero_stage": st.integers(0, 3),
                "micro_batch": st.integers(1, 9),
                "sequence_parallel": st.booleans(),
            }
        ),
        "optimizer": st.fixed_dictionaries(
            {"name": st.sampled_from(list(OPTIMIZERS)), "warmup_steps": st.integers(0, 12)}
        ),
        "run": st.fixed_dictionaries(
            {
                "directory": st.just("r"),
                "steps": st.integers(1, 12),
                "precision": st.sampled_from(["fp32", "bf16"]),
            }
        ),
        "launch": st.fixed_dictionaries({"nodes": st.integers(1, 4)}),
    }
)


@settings(deadline=None)
@given(configs)
def test_any_config_is_refused_or_keeps_what_the_engine_needs(values: dict[str, Any]) -> None:
    config = Config.model_validate(values)
    model, layout = config.model, config.parallel
    recurrent: Any = model.mixers["recurrent"]
    try:
        check(config)
    except ConfigError:
        nearest = nearest_layout(config)
        assert nearest.world_size <= layout.world_size
        # The rules accept the suggested layout, once everything besides the layout is fixed.
        repaired = {
            "parallel": nearest,
            "model": model.changed({"feedback": False, "mixers": {"window": {}}}),
            "data": config.data.model_copy(update={"segment": config.data.segment * model.window}),
            "optimizer": config.optimizer.model_copy(update={"warmup_steps": 0}),
            "launch": config.launch.model_copy(update={"nodes": 1}),
        }
        check(config.model_copy(update=repaired))
        return
    assert config.data.segment % model.window == 0
    assert model.heads % layout.tensor == 0 and model.ffns["relu"].width % layout.tensor == 0
    assert config.micro_batches * layout.micro_batch * layout.data == config.data.streams
    assert layout.pipeline <= model.layers
    assert layout.pipeline == 1 or layout.zero_stage == 1
    assert not model.feedback or (layout.pipeline == 1 and recurrent.layers)
    assert recurrent.positions != "rotary" or model.head_dim % 2 == 0
    assert config.run.precision == "fp32" or layout.zero_stage > 0
    if layout.sequence_parallel:
        assert layout.tensor > 1 and config.data.segment % layout.tensor == 0
        assert not model.feedback or model.window % layout.tensor == 0
        assert not recurrent.layers or recurrent.states % layout.tensor == 0
    assert layout.world_size % config.launch.nodes == 0
    assert len({index % model.layers for index in recurrent.layers}) == len(recurrent.layers)
    assert nearest_layout(config) == layout


def test_deepspeed_settings_follow_from_the_config() -> None:
    config = config_of("parallel={data: 4, micro_batch: 2}", "optimizer.clip_norm=")
    made = deepspeed_config(config)
    assert made["train_micro_batch_size_per_gpu"] == 2
    assert made["gradient_accumulation_steps"] == 4
    assert made["zero_optimization"]["stage"] == 1
    assert made["gradient_clipping"] == 0.0
    assert made["bf16"]["enabled"] and made["data_types"] == {"grad_accum_dtype": "fp32"}
    assert "optimizer" not in made
    assert "data_types" not in deepspeed_config(config_of("run.precision=fp32"))


MIXTURE = "{dataset: a, weight: 1}, {dataset: 's3://bucket/b', weight: 0.5}"


def mixture_of(text: str, dataset: str = "null") -> Config:
    return config_of(f"data.dataset={dataset}", f"data.mixture=[{text}]")


def test_a_dataset_or_a_mixture() -> None:
    mixed = mixture_of(MIXTURE)
    check(mixed, DatasetFacts(32, 256, "a"))
    assert mixed.data.training == ((Path("a"), 1.0), ("s3://bucket/b", 0.5))
    assert load(dump(mixed)).config == mixed
    assert "data.dataset is missing" in refusal(mixture_of(""))
    assert "are both set; nearest: only data.mixture" in refusal(mixture_of(MIXTURE, "books"))
    assert "more than once" in refusal(mixture_of("{dataset: a, weight: 1}, {dataset: a, weight: 2}"))
    message = refusal(mixed, DatasetFacts(7, 256, "a"))
    assert "data.mixture has 7 documents before one repeats at these weights" in message and "data.streams=7" in message
    for broken, told in (
        ("{dataset: a, weight: 0}", "greater than 0"),
        ("{dataset: a}", "weight"),
        ("{dataset: 3, weight: 1}", "a folder or a URL"),
        ("{dataset: a, weight: 1, share: 2}", "share"),
    ):
        with pytest.raises(ConfigError, match=told):
            mixture_of(broken)


def test_few_micro_batches_per_stage_are_told_with_what_they_cost() -> None:
    (warning,) = warnings(config_of("parallel={pipeline: 4, data: 4}"))  # 8 micro-batches
    assert "each stage waits 27% of the time" in warning and "data.streams=64" in warning and "leave 16%" in warning
    assert not list(warnings(config_of("parallel={pipeline: 4, data: 2}")))
    assert not list(warnings(config_of("parallel={data: 32}")))
