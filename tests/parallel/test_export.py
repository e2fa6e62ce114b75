"""Weights that leave a run, and weights that one begins with, mean the same in every layout."""

from pathlib import Path
from typing import Any

import pytest
import torch

from brt_dist.config.loading import dump
from brt_dist.config.schema import Config, ModelConfig
from brt_dist.data.dataset import Dataset
from brt_dist.data.one_pass import OnePassSchedule
from brt_dist.data.reader import SegmentReader
from brt_dist.data.stream_schedule import StreamSchedule
from brt_dist.events import EvaluationEvent, Event, StepEvent
from brt_dist.export.load import load_model, load_weights
from brt_dist.export.open import open_weights
from brt_dist.kinds import WEIGHT_FORMATS
from brt_dist.model.model import BlockRecurrentModel, loss_sum
from brt_dist.parallel.layout import single_process
from tests.parallel.pool import RankPool
from tests.parallel.relayout import config, documents

pytestmark = pytest.mark.slow

LOSS = 1e-6
EVALUATION_STEPS = 3
LAYOUTS: dict[str, dict[str, Any]] = {
    "tp2": {"tensor": 2},
    "pp2": {"pipeline": 2},
    "dp2-zero3": {"data": 2, "zero_stage": 3},
    "tp2-pp2": {"tensor": 2, "pipeline": 2},
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return documents(tmp_path_factory.mktemp("data"))


def train(rank: int, store: str, given: Config) -> dict[str, Any]:
    """A whole run on one rank; its losses, evaluation and the parts of the weights that it works with."""
    import torch.distributed as dist

    from brt_dist.event_log import EventLog
    from brt_dist.parallel.device import choose
    from brt_dist.parallel.layout import Layout, finalize, initialize
    from brt_dist.training.build import build_trainer
    from brt_dist.training.stopping import StopFlag

    layout = Layout.of(given, rank)
    initialize(layout, choose("cpu", rank), 120.0, dist.FileStore(store, layout.world_size))
    events = Recorder()
    with Dataset.open(given.data.dataset) as data:
        run = Path(given.run.directory)
        log = EventLog(run, 1, enabled=rank == 0)
        log.write = events.write  # type: ignore[method-assign]
        trainer = build_trainer(given, run, layout, choose("cpu", rank), log, data, None, StopFlag())
        trainer.run()
        weights = trainer.engine.weights()
        parts = {p.name: (weights[p.name], p.box(layout.tensor_rank, layout.tensor)) for p in trainer.engine.parameters}
        trainer.close()
    finalize()
    return {"losses": events.losses, "evaluation": events.evaluation, "parts": parts}


class Recorder:
    """Keeps the numbers of the events."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.evaluation: dict[str, float] = {}

    def write(self, event: Event) -> None:
        if isinstance(event, StepEvent) and event.loss is not None:
            self.losses.append(event.loss)
        elif isinstance(event, EvaluationEvent) and event.loss is not None:
            self.evaluation[event.memory] = event.loss


def given_config(dataset: Path, run: Path, parallel: dict[str, Any], **changes: Any) -> Config:
    run.mkdir()
    settings = {"directory": run, "steps": 2, "precision": "fp32", "evaluation_steps": EVALUATION_STEPS, **changes}
    given = config(dataset, run, parallel, run=settings)
    (run / "config.yaml").write_text(dump(given))
    return given


def plain_loss(model: BlockRecurrentModel, dataset: Path, schedule: Any, steps: int, streams: int) -> float:
    """Nats per token of the first steps, memory carried, in one plain loop."""
    with Dataset.open(dataset) as data, torch.no_grad():
        reader, cursor, memory = SegmentReader(data, schedule), schedule.start(), model.blank_memory(streams)
        nats, tokens = 0.0, 0
        for _ in range(steps):
            plan, cursor = schedule.step(cursor)
            segments = reader.read(plan, range(streams))
            logits, memory = model(torch.from_numpy(segments.input), memory, torch.from_numpy(segments.starts))
            nats += float(loss_sum(logits, torch.from_numpy(segments.target), torch.from_numpy(segments.mask)))
            tokens += plan.loss_tokens
    return nats / tokens


@pytest.mark.parametrize("parallel", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_exported_weights_are_those_of_the_trainer(
    ranks: RankPool, dataset: Path, tmp_path: Path, parallel: dict[str, Any]
) -> None:
    given = given_config(dataset, tmp_path / "run", parallel)
    outcome = ranks.run(given.parallel.world_size, train, given)
    with open_weights(str(tmp_path / "run")) as weights:
        WEIGHT_FORMATS["hf"].write(weights, tmp_path / "hf", 40_000)
        assert weights.facts["step"] == 2 and weights.tokenizer is not None
    with open_weights(str(tmp_path / "hf")) as exported:
        seen = set()
        for rank in outcome:
            for name, (part, box) in rank["parts"].items():
                whole = exported.read(name)[tuple(slice(*side) for side in box)]
                held = part[tuple(slice(0, size) for size in whole.shape)]
                assert torch.equal(held, whole), name
                seen.add(name)
        assert seen == exported.shapes.keys()
    with single_process(), Dataset.open(dataset) as data:
        model = load_model(str(tmp_path / "hf"))
        schedule = OnePassSchedule(data.lengths, streams=4, segment=32, window=16)
        loss = plain_loss(model, dataset, schedule, EVALUATION_STEPS, 4)
    assert abs(loss - outcome[0]["evaluation"]["carried"]) <= LOSS


def test_a_run_begins_with_the_weights_it_is_given(ranks: RankPool, dataset: Path, tmp_path: Path) -> None:
    first = given_config(dataset, tmp_path / "first", {"data": 2})
    ranks.run(2, train, first)
    with open_weights(str(tmp_path / "first")) as weights:
        WEIGHT_FORMATS["safetensors"].write(weights, tmp_path / "exported")
    with single_process(), Dataset.open(dataset) as data:
        model = load_model(str(tmp_path / "exported"))
        schedule = StreamSchedule(data.lengths, streams=4, segment=32, window=16, seed=7)
        expected = plain_loss(model, dataset, schedule, 1, 4)
    found = {}
    for source in ("exported", "first"):
        for name in ("tp2", "pp2", "dp2-zero3"):
            run = tmp_path / f"{source} {name}"
            begun = given_config(dataset, run, LAYOUTS[name], seed=7, steps=1, init_from=str(tmp_path / source))
            begun = begun.model_copy(update={"model": begun.model.model_copy(update={"dropout": 0.0})})
            found[run.name] = ranks.run(2, train, begun)[0]["losses"][0]
    assert {name: loss for name, loss in found.items() if abs(loss - expected) > LOSS} == {}
    # what was begun goes on from its own checkpoints, not from there again
    again = begun.model_copy(update={"run": begun.run.model_copy(update={"steps": 2})})
    assert len(ranks.run(2, train, again)[0]["losses"]) == 1


def test_a_run_begins_with_what_maps_of_a_gpt(ranks: RankPool, dataset: Path, tmp_path: Path) -> None:
    """The states' part and the cell, which a GPT does not have, are drawn alike on all ranks, from the run's seed."""
    gpt = str(Path(__file__).parents[1] / "data" / "gpt" / "llama")
    sizes = {"layers": 2, "width": 16, "heads": 4, "head_dim": 4, "window": 16, "vocab_size": 256, "dropout": 0.0}
    halves = {"mixers": {"window": {}, "recurrent": {"layers": [1], "states": 8}}, "ffns": {"swiglu": {"width": 24}}}
    model = ModelConfig.model_validate({**sizes, **halves})
    with single_process(), Dataset.open(dataset) as data, open_weights(gpt, into=model, seed=7) as weights:
        schedule = StreamSchedule(data.lengths, streams=4, segment=32, window=16, seed=7)
        expected = plain_loss(load_weights(weights), dataset, schedule, 1, 4)
    for name in ("tp2", "pp2", "dp2-zero3"):
        begun = given_config(dataset, tmp_path / name, LAYOUTS[name], seed=7, steps=1, init_from=gpt)
        found = ranks.run(2, train, begun.model_copy(update={"model": model}))[0]["losses"][0]
        assert abs(found - expected) <= LOSS, name


def test_weights_of_another_model_or_tokenizer_are_refused(ranks: RankPool, dataset: Path, tmp_path: Path) -> None:
    first = given_config(dataset, tmp_path / "first", {})
    ranks.run(1, train, first)
    with open_weights(str(tmp_path / "first")) as weights:
        WEIGHT_FORMATS["safetensors"].write(weights, tmp_path / "exported")
    begun = given_config(dataset, tmp_path / "second", {}, init_from=str(tmp_path / "exported"))
    other = begun.model_copy(update={"model": begun.model.model_copy(update={"heads": 4, "head_dim": 8})})
    with pytest.raises(
        AssertionError, match=r"the weights do not fit this run:(?s:.)*model\.heads: 2 in the run, 4 now"
    ):
        ranks.run(1, train, other)
    (tmp_path / "exported" / "tokenizer.json").write_text('{"kind": "bytes", "vocab_size": 256 }')
    with pytest.raises(AssertionError, match=r"data\.dataset: the weights were trained with tokenizer"):
        ranks.run(1, train, begun)
