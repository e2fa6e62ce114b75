"""Linear attention as a mixer: a float64 loop, and everything that a run does with a layer.

The authors' numbers are in tests/golden/data/kinds.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from brt_dist.config.loading import dump
from brt_dist.config.rules import check
from brt_dist.config.schema import Config, ModelConfig
from brt_dist.errors import ConfigError, ExitCode
from brt_dist.model.mixers.linear import EPSILON, linear_attention, phi
from brt_dist.model.model import BlockRecurrentModel, full_logits, loss_sum
from brt_dist.parallel.layout import single_process
from brt_dist.planning.flops import forward_flops
from brt_dist.planning.parameters import layer_parameters
from tests.datasets import make_dataset
from tests.parallel.cases import config, join, train_on_rank, train_plainly
from tests.parallel.pool import RankPool
from tests.parallel.relayout import LOSS, Relayout

MIXERS = {"window": {}, "linear": {"layers": [1, 2]}, "recurrent": {"layers": [3], "states": 24}}


def model_section(**sizes: Any) -> dict[str, Any]:
    return {"mixers": MIXERS, "ffns": {"relu": {"width": 96}}, "dropout": 0.0, **sizes}


SMALL = model_section(layers=4, width=12, heads=2, head_dim=6, vocab_size=24, window=4)


@pytest.fixture
def world_of_one() -> Iterator[None]:
    with single_process():
        yield


def loop(queries: Tensor, keys: Tensor, values: Tensor, state: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
    """As `linear_attention`, one token after the other."""
    streams, blocks, heads, window = queries.shape[:4]
    out = torch.empty_like(values)
    after = torch.empty_like(state)
    for stream in range(streams):
        for head in range(heads):
            sums, normaliser = state[stream, head, :, :-1].clone(), state[stream, head, :, -1].clone()
            for block in range(blocks):
                if starts[stream, block]:
                    sums, normaliser = torch.zeros_like(sums), torch.zeros_like(normaliser)
                for token in range(window):
                    here = (stream, block, head, token)
                    sums = sums + torch.outer(keys[here], values[here])
                    normaliser = normaliser + keys[here]
                    out[here] = (queries[here] @ sums) / (queries[here] @ normaliser + EPSILON)
            after[stream, head] = torch.cat([sums, normaliser[:, None]], 1)
    return out, after


def test_a_loop_over_tokens_with_documents_that_start_anywhere() -> None:
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    queries, keys, values = phi(draw(3, 4, 2, 5, 3)), phi(draw(3, 4, 2, 5, 3)), draw(3, 4, 2, 5, 3)
    state = draw(3, 2, 3, 4).abs()
    starts = torch.tensor([[0, 0, 1, 0], [1, 0, 0, 1], [0, 0, 0, 0]], dtype=torch.bool)
    inputs = [tensor.requires_grad_() for tensor in (queries.detach(), keys.detach(), values, state)]
    ours, theirs = linear_attention(*inputs, starts), loop(*inputs, starts)
    for one, other in zip(ours, theirs, strict=True):
        assert (one - other).abs().max() < 1e-12
    directions = [draw(*tensor.shape) for tensor in ours]
    gradients = [
        torch.autograd.grad(
            sum((a * b).sum() for a, b in zip(found, directions, strict=True)), inputs, retain_graph=True
        )
        for found in (ours, theirs)
    ]
    for one, other in zip(*gradients, strict=True):
        assert (one - other).abs().max() < 1e-11


@pytest.mark.usefixtures("world_of_one")
def test_segments_causality_and_the_start_of_a_document() -> None:
    model = BlockRecurrentModel(ModelConfig.model_validate(SMALL), seed=2).double()
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(24, (2, 24), generator=generator)
    starts = torch.zeros(2, 6, dtype=torch.bool)
    memory = model.blank_memory(2)
    whole, after = model(tokens, memory, starts)
    first, between = model(tokens[:, :12], memory, starts[:, :3])
    second, end = model(tokens[:, 12:], between, starts[:, 3:])
    assert (torch.cat([first, second]) - whole).abs().max() < 1e-12
    for one, other in zip(end, after, strict=True):
        assert all((one[name] - other[name]).abs().max() < 1e-9 for name in other)

    changed = tokens.clone()
    changed[:, 13:] = (changed[:, 13:] + 1) % 24
    assert torch.equal(model(changed, memory, starts)[0][:13], whole[:13])
    assert not torch.equal(model(changed, memory, starts)[0][13:], whole[13:])

    starts[:, 3] = True
    poisoned = [{name: torch.full_like(value, math.nan) for name, value in layer.items()} for layer in memory]
    begun, _ = model(tokens, memory, starts)
    assert torch.equal(model(tokens, poisoned, starts)[0][12:], begun[12:])


@pytest.mark.usefixtures("world_of_one")
def test_what_is_counted_is_what_is_there() -> None:
    given = ModelConfig.model_validate(SMALL)
    model = BlockRecurrentModel(given, seed=0)
    counted = sum(matrix.size for matrix in layer_parameters(given, 1))
    assert counted == sum(parameter.numel() for parameter in model.layers[1].parameters())
    tokens, starts = torch.randint(24, (2, 12)), torch.zeros(2, 3, dtype=torch.bool)
    with FlopCounterMode(display=False) as forward:
        model(tokens, model.blank_memory(2), starts)
    assert forward.get_total_flops() == pytest.approx(forward_flops(given, executed=True) * tokens.numel(), rel=1e-12)
    assert forward_flops(given) < forward_flops(given, executed=True)
    for field in given.mixer_of(1).memory(given):
        assert model.blank_memory(2)[1][field.name].shape == (2, *field.shape)


@pytest.mark.usefixtures("world_of_one")
def test_the_state_stays_float32_under_bf16() -> None:
    given = ModelConfig.model_validate(SMALL)
    model = BlockRecurrentModel(given, seed=2)
    tokens, starts = torch.randint(24, (2, 24), generator=torch.Generator().manual_seed(0)), torch.zeros(2, 6).bool()
    exact = full_logits(model(tokens, model.blank_memory(2), starts)[0], 24)
    rounded = model.bfloat16()
    logits, memory = rounded(tokens, rounded.blank_memory(2), starts)
    assert memory[1]["state"].dtype == rounded.blank_memory(2)[1]["state"].dtype == torch.float32
    assert (full_logits(logits, 24) - exact).abs().max() < 0.05 * exact.abs().max()


@pytest.mark.usefixtures("world_of_one")
def test_a_small_model_learns_to_copy() -> None:
    """Nine symbols, then the same nine: each of the second half is known from the first, and from nowhere else."""
    torch.manual_seed(0)
    given = ModelConfig.model_validate(
        model_section(layers=2, width=64, heads=4, head_dim=16, vocab_size=12, window=20, mixers={"linear": {}})
    )
    model = BlockRecurrentModel(given, seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    starts = torch.ones(64, 1, dtype=torch.bool)
    for _ in range(400):
        half = torch.stack([torch.randperm(10)[:9] for _ in range(64)])
        tokens = torch.cat([torch.full((64, 1), 10), half, torch.full((64, 1), 11), half], 1)
        mask = torch.zeros(64, 20, dtype=torch.bool)
        mask[:, 11:19] = True
        target = torch.cat([tokens[:, 1:], tokens[:, :1]], 1)
        logits, _ = model(tokens, model.blank_memory(64), starts)
        loss = loss_sum(logits, target, mask) / mask.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.5 * math.log(10)  # of a guess among the ten symbols


def test_what_it_cannot_do_is_refused() -> None:
    sections = {"data": {"dataset": "books", "segment": 64, "streams": 4}, "run": {"directory": "run", "steps": 5000}}
    for model, said in (
        ({"feedback": True}, "linear attention attends to no state of another layer; nearest: model.feedback=false"),
        ({"heads": 3}, "model.heads=3 cannot be split over parallel.tensor=2"),
    ):
        section = model_section(layers=4, vocab_size=11, window=16, **model)
        given = Config.model_validate({**sections, "model": section, "parallel": {"tensor": 2}})
        with pytest.raises(ConfigError, match=said):
            check(given)


LAYOUTS: dict[str, dict[str, Any]] = {
    "tp2": {"tensor": 2},
    "tp2-sequence": {"tensor": 2, "sequence_parallel": True, "recompute": True},
    "pp2": {"pipeline": 2, "recompute": True},
    "dp2-zero1": {"data": 2},
    "dp2-zero3": {"data": 2, "zero_stage": 3},
    "tp2-pp2": {"tensor": 2, "pipeline": 2},
}


def with_mixers(given: Config) -> Config:
    values = given.model.model_dump()
    return given.model_copy(update={"model": ModelConfig.model_validate(values | {"mixers": MIXERS})})


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_trains_as_one_plain_loop(ranks: RankPool, layout: str) -> None:
    given = with_mixers(config(LAYOUTS[layout]))
    truth = train_plainly(with_mixers(config()))
    found = join(ranks.run(given.parallel.world_size, train_on_rank, given))
    assert found.losses == pytest.approx(truth.losses, abs=1e-5)
    assert found.grad_norms == pytest.approx(truth.grad_norms, rel=1e-4)
    assert found.memory.keys() == truth.memory.keys() and "layers.1.state" in found.memory
    for name, value in truth.memory.items():
        assert (found.memory[name] - value).abs().max() < 2e-4 * value.abs().max().clamp(min=1), name


@pytest.mark.slow
@pytest.mark.parametrize(("source", "target"), [("tp2", "dp2-zero3"), ("pp2", "tp2"), ("dp2-zero3", "pp2")])
def test_another_layout_takes_over(ranks: RankPool, tmp_path: Path, source: str, target: str) -> None:
    relayout = Relayout(
        ranks, tmp_path, model=model_section(layers=4, width=32, heads=2, head_dim=16, window=16, vocab_size=256)
    )
    assert relayout.compare(source, target) <= LOSS


@pytest.mark.slow
def test_a_run_resumes_to_the_bit_is_evaluated_samples_and_is_reported(ranks: RankPool, tmp_path: Path) -> None:
    from tests.parallel.test_resume import config as run_config
    from tests.parallel.test_resume import same_tensors, train

    make_dataset(tmp_path, ["abc defgh \n" * n for n in (5, 50, 9, 70, 31, 22)])
    model = model_section(layers=4, width=32, heads=2, head_dim=16, window=16, vocab_size=256, dropout=0.1)
    runs = []
    for name in ("straight", "stopped"):
        given = run_config(tmp_path / "dataset", tmp_path / name, {"parallel": {"data": 2}, "run": {}})
        about = given.run.model_copy(update={"memory_every": 2, "sample_tokens": 3})
        given = given.model_copy(update={"model": ModelConfig.model_validate(model), "run": about})
        given.run.directory.mkdir()
        (given.run.directory / "config.yaml").write_text(dump(given))
        runs.append(given)
    assert {code for code, _ in ranks.run(2, train, runs[0], 1, 99)} == {ExitCode.FINISHED}
    assert {code for code, _ in ranks.run(2, train, runs[1], 1, 3)} == {ExitCode.PREEMPTED}
    assert {code for code, _ in ranks.run(2, train, runs[1], 2, 99)} == {ExitCode.FINISHED}
    same_tensors(*(given.run.directory for given in runs))

    lines = (runs[1].run.directory / "metrics.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    kinds = {event["event"] for event in events}
    assert {"step", "evaluation", "sample", "memory", "held", "checkpoint"} <= kinds
    (told,) = [event["layers"] for event in events if event["event"] == "memory" and event["step"] == 6]
    assert {layer["layer"] for layer in told} == {1, 2, 3}
    assert all(0 < layer["state_rms"] < layer["state_max"] for layer in told)
    plan = next(event["plan"] for event in events if event["event"] == "attempt")
    held = next(event for event in events if event["event"] == "held")
    assert held["carried"] == plan["fullest_rank"]["carried"] and held["weights"] == plan["fullest_rank"]["weights"]

    from click.testing import CliRunner

    from launch.cli import brt

    done = CliRunner().invoke(brt, ["report", str(runs[1].run.directory)])
    assert done.exit_code == 0, done.output
    page = (runs[1].run.directory / "report.html").read_text()
    assert "Size of the states" in page and "layer 2" in page
